"""LoraHub: the penalty's sign and reach, exact algebra, and DEAP's (1+N)-CMA-ES generation by generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from deap import cma

from evomerge.keys import Key
from evomerge.strategies import STRATEGIES
from evomerge.strategies.base import Strategy, empty_state
from evomerge.testing.landscapes import quadratic
from evomerge.types import Births, Failure, Score, State

CONTEXT = quadratic(0).context
EXPERTS, DIMENSION = CONTEXT.experts.genomes.shape
OPTIMUM = np.linspace(-0.8, 0.9, EXPERTS)
DEAD = Failure("exception", "it is dead")


class Individual(list[float]):
    fitness = -np.inf


def build(**parameters: Any) -> Strategy:
    return STRATEGIES["lorahub"].bind(**parameters)(CONTEXT)


def key(generation: int) -> Key:
    return Key(2).at("generation", generation)


def weights(births: Births) -> np.ndarray:
    return np.array([o.details["weights"][0] for o in births.origins if o.operator == "coefficients"])


def sphere(vector: np.ndarray) -> float:
    return -float(((vector - OPTIMUM) ** 2).sum())


def value_of(genome: torch.Tensor) -> float:
    """Return the sphere's value from the genome itself: the experts' directions are orthonormal."""
    return sphere((CONTEXT.experts.genomes.double() @ genome.double()).numpy())


def search(strategy: Strategy, generations: int) -> State:
    births, state = strategy.init(key(0)), empty_state(DIMENSION)
    for generation in range(generations + 1):
        state = strategy.tell(state, births, [Score(value_of(g)) for g in births.genomes], key(generation))
        births = strategy.ask(state, key(generation + 1))
    return state


def test_it_starts_at_the_base_itself() -> None:
    births = build().init(key(0))
    assert [origin.operator for origin in births.origins] == ["expert"] * EXPERTS + ["coefficients"]
    assert weights(births).tolist() == [[0.0] * EXPERTS]
    assert births.genomes[-1].abs().max() == 0


def test_a_weight_and_its_negative_are_opposite_adapters() -> None:
    """Where A and B are averaged apart they are the same one: delta-W is quadratic in w there."""
    strategy = build()
    state = search(strategy, 1)
    births = strategy.ask(state, key(2))
    for vector, genome in zip(weights(births), births.genomes, strict=True):
        exact = vector @ CONTEXT.experts.genomes.double().numpy()
        np.testing.assert_allclose(genome, exact, atol=1e-6)
        assert np.abs(genome.numpy() + exact).max() > 0.1
    assert (weights(births) < 0).any() and (weights(births) > 0).any()


def test_it_is_deaps_one_plus_lambda_on_the_penalised_fitness() -> None:
    strategy = build(population=6, l1=0.3)
    births, state = strategy.init(key(0)), empty_state(DIMENSION)
    state = strategy.tell(state, births, [Score(value_of(g)) for g in births.genomes], key(0))
    parent = Individual([0.5] * EXPERTS)  # zero, between -1.5 and 1.5
    parent.fitness = sphere(np.zeros(EXPERTS))
    plain = cma.StrategyOnePlusLambda(parent, 1 / 18, lambda_=6)
    replaced = 0
    for generation in range(1, 25):
        births = strategy.ask(state, key(generation))
        np.random.seed(key(generation).at("draw").integer() % 2**32)  # noqa: NPY002, TID251
        drawn = plain.generate(Individual)
        for point, vector in zip(drawn, weights(births), strict=True):
            np.testing.assert_allclose(vector, 3 * np.abs((np.array(point) + 1) % 2 - 1) - 1.5, atol=1e-12)
            point.fitness = sphere(vector) - 0.3 * np.abs(vector).mean()
        before = list(plain.parent)
        plain.update(drawn)
        replaced += list(plain.parent) != before
        state = strategy.tell(state, births, [Score(sphere(v)) for v in weights(births)], key(generation))
        assert state.tensors["parent"][0].tolist() == list(plain.parent)
        assert state.tensors["covariance"][0].tolist() == plain.C.ravel().tolist()
        assert state.tensors["path"][0].tolist() == plain.pc.tolist()
        assert state.extra == {"sigma": plain.sigma, "success": plain.psucc, "fitness": [True, plain.parent.fitness]}
    assert 3 < replaced < 24


def test_without_a_penalty_it_finds_the_optimum() -> None:
    state = search(build(l1=0), 150)
    np.testing.assert_allclose(state.best.origin.details["weights"][0], OPTIMUM, atol=1e-3)


def test_a_penalty_keeps_weights_small_and_a_large_one_at_zero() -> None:
    """GENOME's port of the method adds the penalty, so that large weights win."""
    sizes = [np.abs(search(build(l1=l1), 40).best.origin.details["weights"]).mean() for l1 in (0.0, 2.0, 100.0)]
    assert sizes[0] == pytest.approx(np.abs(OPTIMUM).mean(), abs=0.02)
    assert sizes[1] < 0.85 * sizes[0]
    assert sizes[2] < 0.01


def test_best_goes_by_the_penalised_fitness_and_scores_stay_true() -> None:
    """Expert 0 scores 0.30 at a mean |w| of 1/8, so 0.30 - 0.8/8 = 0.20; the base scores 0.25 at none."""
    strategy = build(l1=0.8, population=3)
    births = strategy.init(key(0))
    told = [Score(0.30), *[Score(0.0)] * (EXPERTS - 1), Score(0.25)]
    state = strategy.tell(empty_state(DIMENSION), births, told, key(0))
    assert state.best.score.value == 0.25 and state.best.digest == births.digests[-1]
    assert [member.score.value for member in state.members] == [0.25, 0.30, 0.0]
    assert torch.equal(state.tensors["best"], births.genomes[-1:]) and state.stalled == 0
    again = strategy.ask(state, key(1))
    sizes = np.abs(weights(again)).mean(1)
    told = [Score(0.25 + 0.8 * size - 1e-6) for size in sizes]  # all higher, none by enough
    after = strategy.tell(state, again, told, key(1))
    assert after.best == state.best and after.stalled == 1
    told = [Score(0.25 + 0.8 * size + 1e-6 * (number + 1)) for number, size in enumerate(sizes)]
    after = strategy.tell(state, again, told, key(1))
    assert after.best.digest == again.digests[-1] and after.best.score == told[-1] and after.stalled == 0


def test_a_birth_that_cannot_be_scored_is_no_success() -> None:
    strategy = build(population=4)
    state = search(strategy, 2)
    births = strategy.ask(state, key(3))
    low = [Score(-1e9)] * 4
    for who in range(4):
        dead = [DEAD if number != who else Score(-1e9) for number in range(4)]
        expected, got = (strategy.tell(state, births, told, key(3)) for told in (low, dead))
        assert got.extra == expected.extra and got.extra["success"] < state.extra["success"]
        assert torch.equal(got.tensors["parent"], state.tensors["parent"])
    nobody = strategy.tell(state, births, [DEAD] * 4, key(3))
    assert nobody.extra == state.extra and nobody.best == state.best and nobody.stalled == state.stalled + 1


def test_where_the_base_cannot_be_scored_any_birth_is_better() -> None:
    strategy = build(population=4)
    births = strategy.init(key(0))
    told = [Score(5.0)] * EXPERTS + [DEAD]
    state = strategy.tell(empty_state(DIMENSION), births, told, key(0))
    assert state.extra["fitness"] == [False, 0.0] and state.best.origin.operator == "expert"
    births = strategy.ask(state, key(1))
    after = strategy.tell(state, births, [Score(-7.0), DEAD, DEAD, DEAD], key(1))
    assert after.extra["fitness"][0] is True and after.extra["fitness"][1] < -7.0
    # Igel et al.: p_target = 1 / (5 + sqrt(4) / 2), c_p = 4 p_target / (2 + 4 p_target); one success of four.
    assert after.extra["success"] == pytest.approx(0.75 / 6 + 0.25 / 4)


def test_it_ends_where_no_genome_shows_its_steps() -> None:
    strategy = build()
    state = search(strategy, 1)
    for sigma, ends in ((1e-6, False), (1e-8, True)):
        small = State(1, state.members, state.best, 0, state.tensors, {**state.extra, "sigma": sigma})
        assert (strategy.ask(small, key(2)) is None) is ends
