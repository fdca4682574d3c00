"""CMA-ES over coefficients: DEAP's own run, generation by generation; failures; where it gets to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from deap import cma

from evomerge.errors import RecipeError
from evomerge.keys import Key
from evomerge.spaces.deltas import DenseSpace
from evomerge.strategies import STRATEGIES
from evomerge.strategies.base import Context, Experts, Strategy, empty_state
from evomerge.testing.landscapes import quadratic
from evomerge.types import Births, Failure, Outcome, Score, State

CONTEXT = quadratic(0).context
EXPERTS, DIMENSION = CONTEXT.experts.genomes.shape
DEAD = Failure("exception", "it is dead")
OPTIMUM = np.linspace(0.1, 0.6, EXPERTS)
Fitness = Callable[[np.ndarray], float]


class Individual(list[float]):
    fitness = -np.inf


def build(**parameters: Any) -> Strategy:
    return STRATEGIES["cma"].bind(**parameters)(CONTEXT)


def key(generation: int) -> Key:
    return Key(9).at("generation", generation)


def vectors(births: Births) -> np.ndarray:
    """Return what the records of merged births say, ``[n, m]``."""
    return np.array([np.ravel(o.details["weights"]) for o in births.origins if o.operator == "coefficients"])


def sphere(vector: np.ndarray) -> float:
    return -float(((vector - OPTIMUM) ** 2).sum())


def founded(strategy: Strategy) -> State:
    births = strategy.init(key(0))
    return strategy.tell(empty_state(DIMENSION), births, [Score(-9.0)] * len(births.origins), key(0))


def step(strategy: Strategy, state: State, outcome: Callable[[int, np.ndarray], Outcome]) -> State:
    births = strategy.ask(state, key(state.generation + 1))
    outcomes = [outcome(number, vector) for number, vector in enumerate(vectors(births))]
    return strategy.tell(state, births, outcomes, key(state.generation + 1))


def scored(number: int, vector: np.ndarray) -> Outcome:
    return Score(sphere(vector))


def test_founders_are_the_experts_and_the_uniform_merge_from_where_the_search_starts() -> None:
    strategy = build()
    births = strategy.init(key(0))
    assert [origin.operator for origin in births.origins] == ["expert"] * EXPERTS + ["coefficients"]
    assert vectors(births).tolist() == [[1 / EXPERTS] * EXPERTS]
    state = founded(strategy)
    assert state.tensors["centroid"].tolist() == [[1 / EXPERTS] * EXPERTS]
    assert state.extra == {"sigma": 1 / 6, "updates": 0}


@pytest.mark.parametrize(("bounds", "population"), [((0.0, 1.0), 12), ((-1.0, 3.0), 7)])
def test_it_is_deaps_cma_generation_by_generation(bounds: tuple[float, float], population: int) -> None:
    low, width = bounds[0], bounds[1] - bounds[0]
    strategy = build(population=population, genotype={"bounds": bounds})
    plain = cma.Strategy([(1 / EXPERTS - low) / width] * EXPERTS, 1 / 6, lambda_=population)
    state, mirrored = founded(strategy), 0
    for generation in range(1, 13):
        np.random.seed(key(generation).at("draw").integer() % 2**32)  # noqa: NPY002, TID251
        drawn = plain.generate(Individual)
        births = strategy.ask(state, key(generation))
        for point, vector in zip(drawn, vectors(births), strict=True):
            # A mirror, another way: a triangle wave of period 2.
            expected = low + width * np.abs((np.array(point) + 1) % 2 - 1)
            np.testing.assert_allclose(vector, expected, atol=1e-12)
            mirrored += bool(min(point) < 0 or max(point) > 1)
            point.fitness = sphere(vector)
        state = strategy.tell(state, births, [Score(sphere(v)) for v in vectors(births)], key(generation))
        plain.update(drawn)
        assert state.tensors["centroid"][0].tolist() == plain.centroid.tolist()
        assert state.tensors["covariance"][0].tolist() == plain.C.ravel().tolist()
        assert state.tensors["paths"].tolist() == [plain.ps.tolist(), plain.pc.tolist()]
        assert state.extra == {"sigma": plain.sigma, "updates": generation}
    assert mirrored > 5


def test_the_globals_of_numpy_are_left_alone() -> None:
    strategy = build()
    state = founded(strategy)
    np.random.seed(1)  # noqa: NPY002, TID251
    expected = np.random.random(3).tolist()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002, TID251
    step(strategy, state, scored)
    assert np.random.random(3).tolist() == expected  # noqa: NPY002


def test_it_finds_an_optimum_in_the_span_to_a_millionth() -> None:
    strategy, target = build(), (torch.from_numpy(OPTIMUM) @ CONTEXT.experts.genomes.double())
    births, state = strategy.init(key(0)), empty_state(DIMENSION)
    while births is not None and state.generation < 150:
        outcomes = [Score(-float(((genome - target) ** 2).sum())) for genome in births.genomes]
        state = strategy.tell(state, births, outcomes, key(state.generation + 1))
        births = strategy.ask(state, key(state.generation + 1))
    assert float((state.tensors["best"][0] - target).abs().max()) < 1e-6
    assert births is None and state.generation < 150, "steps that no genome shows are not taken"


def test_layers_of_their_own_reach_what_one_weight_for_all_cannot() -> None:
    """The target mixes the experts differently in each half of the layers."""
    halves = np.stack([OPTIMUM, OPTIMUM[::-1]])
    split = DIMENSION // 2  # layers are in order, and of one size
    parts = torch.from_numpy(halves) @ CONTEXT.experts.genomes.double()
    target = torch.cat([parts[0, :split], parts[1, split:]])
    gaps = []
    for layers in (1, 2):
        strategy = build(population=14, genotype={"layers": layers})
        births, state = strategy.init(key(0)), empty_state(DIMENSION)
        for generation in range(60):
            outcomes = [Score(-float(((genome - target) ** 2).sum())) for genome in births.genomes]
            state = strategy.tell(state, births, outcomes, key(generation))
            births = strategy.ask(state, key(generation + 1))
        gaps.append(float((state.tensors["best"][0] - target).norm()))
    assert gaps[0] > 0.4 and gaps[1] < 0.05


def test_every_weight_is_within_its_bounds() -> None:
    strategy = build(sigma=1.0, genotype={"bounds": (-0.3, 0.4), "genes": {"lam": (0.5, 0.9)}})
    state = founded(strategy)
    for generation in range(1, 4):
        births = strategy.ask(state, key(generation))
        weights, lams = vectors(births), np.array([origin.details["lam"] for origin in births.origins])
        assert ((weights >= -0.3) & (weights <= 0.4)).all() and ((lams >= 0.5) & (lams <= 0.9)).all()
        assert weights.min() < -0.25 and weights.max() > 0.35
        state = strategy.tell(state, births, [Score(float(row[0])) for row in weights], key(generation))


def test_who_cannot_be_scored_ranks_last() -> None:
    strategy = build(population=8)
    state = founded(strategy)
    dead = step(strategy, state, lambda number, vector: DEAD if number % 2 else scored(number, vector))
    worst = step(strategy, state, lambda number, vector: Score(-1e9) if number % 2 else scored(number, vector))
    for name in ("centroid", "paths", "covariance"):
        assert torch.equal(dead.tensors[name], worst.tensors[name])
        assert not torch.equal(dead.tensors[name], state.tensors[name])
    assert dead.extra == worst.extra


def test_too_few_scores_leave_the_gaussian_as_it_is() -> None:
    strategy = build(population=8)
    state = step(strategy, founded(strategy), scored)
    after = step(strategy, state, lambda number, vector: DEAD if number >= 3 else Score(1.0 + number))
    for name in ("centroid", "paths", "covariance"):
        assert torch.equal(after.tensors[name], state.tensors[name])
    assert after.extra == state.extra
    assert after.best is not None and after.best.score.value == 3.0, "their scores still count"


def test_the_best_ever_live() -> None:
    strategy, state, known = build(population=5), None, []
    state = founded(strategy)
    known += [-9.0] * (EXPERTS + 1)
    for _ in range(4):
        births = strategy.ask(state, key(state.generation + 1))
        values = [sphere(vector) for vector in vectors(births)]
        known += values
        state = strategy.tell(state, births, [Score(v) for v in values], key(state.generation + 1))
        assert [member.score.value for member in state.members] == sorted(known, reverse=True)[:5]


def test_a_step_is_never_longer_than_the_bounds_are_wide() -> None:
    strategy = build()
    state = founded(strategy)
    # A long evolution path: DEAP alone would make the step several times longer.
    tensors = {**state.tensors, "paths": torch.full_like(state.tensors["paths"], 20.0)}
    after = step(strategy, State(0, state.members, state.best, 0, tensors, {"sigma": 0.9, "updates": 9}), scored)
    assert after.extra["sigma"] == 1.0


def test_a_gaussian_that_rounding_made_flat_ends_the_search() -> None:
    strategy = build()
    state = founded(strategy)
    flat = np.eye(EXPERTS)
    for bad in (-1e-9, 1e-15):
        flat[0, 0] = bad
        tensors = {**state.tensors, "covariance": torch.from_numpy(flat.reshape(1, -1))}
        broken = State(0, state.members, state.best, 0, tensors, state.extra)
        assert strategy.ask(broken, key(1)) is None
    assert strategy.ask(state, key(1)) is not None


def test_more_coefficients_than_it_adapts_are_refused() -> None:
    modules = {f"model.layers.{layer}.mlp": (1, 1) for layer in range(30)}
    context = Context(DenseSpace(modules, rank=1), Experts(tuple("abcdefg"), torch.ones(7, 30)))
    for strategy in ("cma", "lorahub"):
        STRATEGIES[strategy].bind(genotype={"layers": 28})(context)
        with pytest.raises(RecipeError, match="a genotype of 203 coefficients is more than the 200 that CMA-ES adapts"):
            STRATEGIES[strategy].bind(genotype={"layers": 29})(context)
