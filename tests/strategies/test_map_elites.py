"""MAP-Elites: one elite in each cell, which only ever gets better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import Problems, RecipeError
from evomerge.keys import Key
from evomerge.strategies import STRATEGIES
from evomerge.strategies.base import Strategy, empty_state
from evomerge.testing.landscapes import quadratic
from evomerge.types import Births, Failure, Origin, Outcome, Score, State, digest_tensor
from evomerge.variation.merge import MERGES

LANDSCAPE = quadratic(0)
DIMENSION = LANDSCAPE.context.experts.genomes.shape[1]


def map_elites(**parameters: Any) -> Strategy:
    return STRATEGIES["map_elites"].bind(**parameters)(LANDSCAPE.context)


def tell(strategy: Strategy, outcomes: Sequence[Outcome], state: State | None = None) -> State:
    """Return the state after births with these outcomes; their genomes are new ones."""
    before = state or empty_state(DIMENSION)
    genomes = torch.randn(len(outcomes), DIMENSION, generator=Key(before.generation + 1).torch())
    return strategy.tell(before, Births(genomes, (Origin("crossover"),) * len(outcomes)), outcomes, Key(0))


def score(a: float, b: float, value: float = 0.0) -> Score:
    return Score(value, {"a": a, "b": b, "c": 0.5})


def states(strategy: Strategy, count: int) -> Iterator[State]:
    state = empty_state(DIMENSION)
    for number in range(count):
        births = strategy.ask(state, Key(number)) if number else strategy.init(Key(number))
        assert births is not None
        state = strategy.tell(state, births, [LANDSCAPE.score(row) for row in births.genomes], Key(number))
        yield state


def archive(state: State) -> dict[tuple[int, ...], float]:
    cells = [tuple(cell) for cell in state.extra["cells"]]
    assert len(cells) == len(state.members) == len(set(cells))
    assert cells == sorted(cells)
    return dict(zip(cells, (member.score.value for member in state.members), strict=True))


def test_a_cell_only_ever_improves_and_keeps_one() -> None:
    strategy = map_elites(bins=6, mutation={"rate": 0.3, "gene_rate": 0.5, "sigma": 0.3})
    archives = []
    for state in states(strategy, 12):
        archives.append(archive(state))
        assert [digest_tensor(row) for row in state.population] == [member.digest for member in state.members]
        for member, cell in zip(state.members, state.extra["cells"], strict=True):
            assert cell == [min(5, int(6 * member.score.tasks[task])) for task in ("task0", "task1")]
        assert state.best is not None and state.best.score.value == max(archives[-1].values())
    for before, after in pairwise(archives):
        assert all(after[cell] >= value for cell, value in before.items())
    assert len(archives[0]) < len(archives[-1]) <= strategy.population == 36
    assert any(archives[-1][cell] > value for cell, value in archives[0].items())


def test_the_fittest_takes_the_cell_and_an_equal_one_does_not() -> None:
    strategy = map_elites(bins=2)
    state = tell(strategy, [score(0.1, 0.1, 3.0), score(0.4, 0.4, 5.0), score(0.2, 0.3, 4.0), score(0.9, 0.1, 1.0)])
    assert archive(state) == {(0, 0): 5.0, (1, 0): 1.0}
    incumbent = state.members[0].digest
    state = tell(strategy, [score(0.3, 0.3, 5.0), score(0.9, 0.2, 2.0), score(0.1, 0.9, -1.0)], state)
    assert archive(state) == {(0, 0): 5.0, (0, 1): -1.0, (1, 0): 2.0}
    assert state.members[0].digest == incumbent
    after = tell(strategy, [Failure("exception", "dead")] * 2, state)
    assert (after.members, after.stalled) == (state.members, state.stalled + 1)


@pytest.mark.parametrize(
    ("value", "bins", "expected"),
    [
        (0.0, 10, 0),
        (0.0999, 10, 0),
        (0.1, 10, 1),
        (0.3, 10, 3),
        (0.58, 50, 29),  # 0.58 x 50 is 28.999999999999996
        (1.0, 10, 9),
        (7.0, 10, 9),
        (-0.2, 10, 0),
        (1.0, 1, 0),
    ],
)
def test_cells_are_half_open_and_the_last_is_closed(value: float, bins: int, expected: int) -> None:
    assert tell(map_elites(bins=bins), [score(value, 0.0)]).extra["cells"] == [[expected, 0]]


def test_measures_are_chosen_and_scaled() -> None:
    strategy = map_elites(bins=4, measures=["c", "a"], ranges=[[0.0, 1.0], [-2.0, 2.0]])
    state = tell(strategy, [score(-1.0, 0.0), score(1.9, 0.9)])
    assert state.extra == {"measures": ["c", "a"], "cells": [[2, 1], [2, 3]]}
    assert tell(map_elites(), [score(0.0, 0.0)]).extra["measures"] == ["a", "b"]


# Births


def test_exactly_a_batch_is_born_of_elites() -> None:
    strategy = map_elites(bins=6, batch=15, mutation={"rate": 0.4, "gene_rate": 1.0})
    *_, state = states(strategy, 3)
    elites = dict(zip((member.digest for member in state.members), state.population, strict=True))
    operators: Counter[str] = Counter()
    parents: Counter[str] = Counter()
    for seed in range(40):
        births = strategy.ask(state, Key(seed))
        assert births is not None and len(births.origins) == 15 == strategy.births_per_generation()
        for row, origin in zip(births.genomes, births.origins, strict=True):
            operators[origin.operator] += 1
            parents.update(origin.parents)
            if origin.operator == "crossover":
                assert len(set(origin.parents)) == 2
                weights = torch.tensor(origin.details["weights"])
                stack = torch.stack([elites[parent] for parent in origin.parents])
                assert torch.equal(row, MERGES["linear"](stack, weights, LANDSCAPE.context.segments, Key(0)))
                assert 0 < float(weights[0]) < 1 == pytest.approx(float(weights.sum()))
            else:
                assert not torch.equal(row, elites[origin.parents[0]])
    assert abs(operators["mutation"] / 600 - 0.4) < 4.5 * (0.24 / 600) ** 0.5
    share = 1 / len(elites)
    for count in (parents[digest] for digest in elites):
        assert abs(count / parents.total() - share) < 4.5 * (share * (1 - share) / parents.total()) ** 0.5


def test_one_elite_alone_has_mutants_or_nothing() -> None:
    state = tell(map_elites(), [score(0.5, 0.5)])
    births = map_elites(batch=4).ask(state, Key(0))
    assert births is not None and [origin.operator for origin in births.origins] == ["mutation"] * 4
    assert {origin.parents for origin in births.origins} == {(state.members[0].digest,)}
    assert map_elites(mutation={"rate": 0}).ask(state, Key(0)) is None


def test_it_lights_up_more_than_the_founders() -> None:
    coverage = [len(state.members) for state in states(map_elites(batch=30), 15)]
    assert coverage == sorted(coverage)
    assert coverage[-1] > 1.5 * coverage[0]


# Mistakes


@pytest.mark.parametrize(
    ("tasks", "measures", "cause", "fix"),
    [
        ({"a": 0.1}, None, "map_elites measures two tasks; the fitness has ['a']", "`niches` needs only one"),
        ({}, None, "map_elites measures two tasks; the fitness has none", "Add a task to `fitness`"),
        (
            {"german": 0.1, "maths": 0.2},
            ["maths", "germann"],
            "map_elites.measures: the fitness has no task 'germann'",
            "Did you mean 'german'? Known: german, maths.",
        ),
    ],
)
def test_measures_that_there_are_not(tasks: dict[str, float], measures: list[str] | None, cause: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tell(map_elites(measures=measures), [Failure("exception", "dead"), Score(0.0, tasks)])
    assert (caught.value.cause, caught.value.where) == (cause, "strategy.measures")
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"measures": ["a", "a"]}, "map_elites.measures names 'a' twice\n  where: measures\n  to do: Name two tasks."),
        ({"ranges": [[0, 1], [1, 1]]}, "map_elites.ranges: [1.0, 1.0] is no range"),
        ({"bins": 0}, "map_elites.bins = 0: it should be greater than or equal to 1"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(Problems) as caught:
        map_elites(**parameters)
    assert message in str(caught.value)


def test_founders_that_all_fail_settle_no_measures() -> None:
    state = tell(map_elites(measures=["x", "y"]), [Failure("exception", "dead")])
    assert (state.members, state.best, dict(state.extra)) == ((), None, {})
    assert np.shape(state.population) == (0, DIMENSION)
