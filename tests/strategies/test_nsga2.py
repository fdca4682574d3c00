"""NSGA-II: who survives, which point of the front is the best, and when a search stalls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from deap import base, creator, tools

from evomerge.errors import Problems
from evomerge.keys import Key
from evomerge.selection.pareto import crowded
from evomerge.strategies import STRATEGIES
from evomerge.strategies.base import Strategy, empty_state
from evomerge.strategies.nsga2 import front, objectives
from evomerge.testing.landscapes import quadratic
from evomerge.types import Births, Origin, Outcome, Score, State, digest_tensor

LANDSCAPE = quadratic(0)
DIMENSION = LANDSCAPE.context.experts.genomes.shape[1]


def nsga2(**parameters: Any) -> Strategy:
    return STRATEGIES["nsga2"].bind(**parameters)(LANDSCAPE.context)


def tell(strategy: Strategy, state: State, tasks: Sequence[Mapping[str, float]], values: Sequence[float] = ()) -> State:
    """Return the state after births with these scores; their genomes are new ones."""
    genomes = torch.randn(len(tasks), DIMENSION, generator=Key(state.generation + 1).torch())
    births = Births(genomes, (Origin("crossover"),) * len(tasks))
    totals = values or [sum(each.values()) for each in tasks]
    outcomes = [Score(total, each) for total, each in zip(totals, tasks, strict=True)]
    return strategy.tell(state, births, outcomes, Key(0))


def of_two(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"a": a, "b": b} for a, b in points]


def points_of(state: State) -> list[tuple[float, ...]]:
    return [tuple(member.score.tasks.values()) for member in state.members]


def generations(strategy: Strategy, count: int, seen: Callable[[Births, list[Outcome], State], None]) -> State:
    state = empty_state(DIMENSION)
    for number in range(count):
        births = strategy.ask(state, Key(number)) if number else strategy.init(Key(number))
        assert births is not None
        outcomes: list[Outcome] = [LANDSCAPE.score(row) for row in births.genomes]
        seen(births, outcomes, state)
        state = strategy.tell(state, births, outcomes, Key(number))
    return state


def test_survivors_are_those_of_deap() -> None:
    creator.create("TaskFitness", base.Fitness, weights=(1.0,) * 4)
    creator.create("TaskIndividual", list, fitness=creator.TaskFitness)
    strategy = nsga2(population=10)
    expected: list[list[str]] = []

    def oracle(births: Births, outcomes: list[Outcome], state: State) -> None:
        if expected:
            assert [member.digest for member in state.members] == expected[-1]
        everyone = {member.digest: member.score for member in state.members}
        for digest, outcome in zip(births.digests, outcomes, strict=True):
            everyone.setdefault(digest, outcome)
        individuals = [creator.TaskIndividual([digest]) for digest in everyone]
        for individual in individuals:
            individual.fitness.values = [everyone[individual[0]].tasks[f"task{t}"] for t in range(4)]
        expected.append([individual[0] for individual in tools.selNSGA2(individuals, 10)])

    state = generations(strategy, 6, oracle)
    assert [member.digest for member in state.members] == expected[-1]
    assert len(state.members) == 10
    assert any(member.born > 2 for member in state.members)


def test_parents_are_drawn_by_the_crowded_comparison() -> None:
    strategy = nsga2(population=10, mutation={"rate": 0}, crossover={"rate": 1})
    state = generations(strategy, 2, lambda *_: None)
    order = crowded(objectives(state.members))
    # The first of two distinct parents wins one tournament of two with replacement: P = (2 beaten + equals) / n^2.
    equal = (order[:, None] == order).sum(axis=1)
    expected = dict(zip((m.digest for m in state.members), (2 * order + equal) / 100, strict=True))
    births = [strategy.ask(state, Key(seed).at("parents")) for seed in range(150)]
    firsts = [origin.parents[0] for each in births if each is not None for origin in each.origins]
    assert len(firsts) == 1500
    for digest, share in expected.items():
        assert abs(firsts.count(digest) / 1500 - share) < 4.5 * (share * (1 - share) / 1500) ** 0.5
    weights = np.array([origin.details["weights"] for each in births if each is not None for origin in each.origins])
    assert len(np.unique(weights[:, 0])) == 1500  # children spread between their parents


def test_births_per_generation_is_the_mean_that_is_measured() -> None:
    strategy = nsga2(population=8, mutation={"rate": 0.25})
    state = generations(strategy, 2, lambda *_: None)
    counts = [len(births.origins) for seed in range(80) if (births := strategy.ask(state, Key(seed)))]
    assert strategy.births_per_generation() == pytest.approx(8 * 0.9 + 0.25 * (8 + 8 * 0.9))
    assert abs(np.mean(counts) - strategy.births_per_generation()) < 4 * np.std(counts) / np.sqrt(80)
    assert nsga2(population=8, crossover={"trials": 3, "rate": 1}, mutation={"rate": 0}).births_per_generation() == 3


def test_the_best_is_the_knee_or_the_fittest_of_the_front() -> None:
    scores = of_two((0.0, 1.0), (0.7, 0.7), (0.98, 0.38), (1.0, 0.0), (0.6, 0.6))
    values = [0.1, 0.2, 0.3, 0.4, 0.9]  # the fittest of all is dominated; of the front, the fourth is
    for choose, expected in (("knee", (0.7, 0.7)), ("fitness", (1.0, 0.0))):
        state = tell(nsga2(choose=choose), empty_state(DIMENSION), scores, values)
        assert state.best is not None and tuple(state.best.score.tasks.values()) == expected
        assert digest_tensor(state.tensors["best"][0]) == state.best.digest
        assert state.tensors["best"].shape == (1, DIMENSION)


def test_the_best_may_get_worse_where_the_front_moves() -> None:
    strategy = nsga2()
    state = tell(strategy, empty_state(DIMENSION), of_two((0.0, 1.0), (0.7, 0.7), (1.0, 0.0)), [0.5, 0.9, 0.5])
    after = tell(strategy, state, of_two((0.9, 0.6)), [0.8])
    assert state.best is not None and after.best is not None
    assert (state.best.score.value, after.best.score.value) == (0.9, 0.8)
    assert digest_tensor(after.tensors["best"][0]) == after.best.digest
    assert after.stalled == 0


def test_the_front_is_told_by_digest_and_lives_while_it_fits() -> None:
    scores = of_two((0.0, 1.0), (0.4, 0.4), (0.7, 0.7), (0.7, 0.7), (1.0, 0.0), (0.6, 0.1))
    state = tell(nsga2(population=5), empty_state(DIMENSION), scores)
    assert sorted(points_of(state)) == [(0.0, 1.0), (0.4, 0.4), (0.7, 0.7), (0.7, 0.7), (1.0, 0.0)]
    on_front = [row for row, point in enumerate(points_of(state)) if point != (0.4, 0.4)]
    assert list(front(state.members)) == on_front
    assert state.extra == {"front": [state.members[row].digest for row in on_front]}


def test_a_search_stalls_while_the_front_stays() -> None:
    strategy = nsga2(population=6)
    state = tell(strategy, empty_state(DIMENSION), of_two((0.0, 1.0), (0.7, 0.7), (1.0, 0.0)))
    assert state.stalled == 0
    best = state.best
    stalled = []
    for point in [(0.2, 0.2), (0.7, 0.7), (0.1, 0.95), (0.0, 0.9), (0.1, 0.97)]:
        state = tell(strategy, state, of_two(point))
        stalled.append(state.stalled)
    # Worse, then an equal one, are no progress; new points beside the best are, though the best is the same.
    assert stalled == [1, 2, 0, 1, 0]
    assert state.best == best


def test_without_tasks_the_fitness_is_the_objective() -> None:
    state = tell(nsga2(population=2), empty_state(DIMENSION), [{}, {}, {}], [0.3, 0.9, 0.5])
    assert [member.score.value for member in state.members] == [0.9, 0.5]
    assert state.best is not None and state.best.score.value == 0.9


def test_it_finds_better_trade_offs_than_the_experts() -> None:
    def covered(state: State) -> float:
        """Return the mean over directions of the best worst weighted task: grows with the front."""
        directions = Key(0).numpy().dirichlet(np.ones(4), size=50)
        values = objectives(state.members)
        return float((values[None] / directions[:, None]).min(axis=2).max(axis=1).mean())

    strategy = nsga2(population=16)
    first = generations(strategy, 1, lambda *_: None)
    last = generations(strategy, 12, lambda *_: None)
    assert covered(last) > 1.15 * covered(first)


def test_a_parameter_that_is_none_is_named() -> None:
    with pytest.raises(Problems) as caught:
        nsga2(choose="middle")
    assert "nsga2.choose = 'middle': it should be 'knee' or 'fitness'" in str(caught.value)
