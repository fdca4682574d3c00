"""Parent selection: probabilities, distinctness, and hard fitness values."""

from __future__ import annotations

import random  # noqa: TID251 - to see that it does not move
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import EvomergeError, FitnessError, RunError
from evomerge.keys import Key
from evomerge.selection.parents import PARENTS

FITNESS = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -1.0, 1.0]), min_size=1)


def shares(name: str, fitness: list[float], draws: int = 1500, **params: object) -> list[float]:
    """Return how often each member is drawn first."""
    select, values = PARENTS[name], np.array(fitness)
    first = Counter(select(values, 1, Key(0).at(i), **params)[0] for i in range(draws))
    return [first[i] / draws for i in range(len(fitness))]


def assert_shares(measured: list[float], expected: list[float], draws: int = 1500) -> None:
    for got, probability in zip(measured, expected, strict=True):
        assert abs(got - probability) <= 4.5 * (probability * (1 - probability) / draws) ** 0.5


def test_the_registry() -> None:
    assert tuple(PARENTS) == ("fitness_proportional", "tournament")


@pytest.mark.parametrize(
    ("fitness", "expected"),
    [
        ([1.0, 3.0, 0.0, 4.0], [1 / 8, 3 / 8, 0, 4 / 8]),
        ([0.2, 0.2, 0.2], [1 / 3, 1 / 3, 1 / 3]),
        ([0.0, 0.0], [1 / 2, 1 / 2]),
        ([-5.0, -5.0], [1 / 2, 1 / 2]),
        ([-3.0, -1.0, 0.0, 1.0], [0, 2 / 9, 3 / 9, 4 / 9]),  # less the lowest: 0, 2, 3, 4
        ([1e308, 1e308, 1e308], [1 / 3, 1 / 3, 1 / 3]),  # their sum is not a float
        ([-1e308, 1e308], [0, 1]),  # nor is their difference
        ([5e-324, 0.0], [1, 0]),
    ],
)
def test_fitness_proportional(fitness: list[float], expected: list[float]) -> None:
    assert_shares(shares("fitness_proportional", fitness), expected)


def test_the_second_parent_is_proportional_among_the_rest() -> None:
    select, fitness = PARENTS["fitness_proportional"], np.array([1.0, 2.0, 7.0])
    pairs = Counter(select(fitness, 2, Key(0).at(i)) for i in range(1500))
    expected = {(i, j): fitness[i] / 10 * fitness[j] / (10 - fitness[i]) for i in range(3) for j in range(3) if i != j}
    assert set(pairs) == set(expected)
    assert_shares([pairs[pair] / 1500 for pair in expected], list(expected.values()))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tournament(size: int) -> None:
    # The best of `size` draws with replacement is at most rank r with probability (r / n)^size.
    fitness = [0.3, -1.0, 0.9, 0.5]
    by_rank = [(r / 4) ** size - ((r - 1) / 4) ** size for r in (1, 2, 3, 4)]
    expected = [by_rank[rank] for rank in (1, 0, 3, 2)]
    assert_shares(shares("tournament", fitness, size=size), expected)


@given(fitness=FITNESS, data=st.data())
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("name", tuple(PARENTS))
def test_parents_are_distinct_whatever_the_fitness(name: str, fitness: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(fitness)))
    values = np.array(fitness)
    chosen = PARENTS[name](values, count, Key(1))
    assert len(chosen) == len(set(chosen)) == count
    assert set(chosen) <= set(range(len(fitness)))
    assert values.tolist() == fitness


@pytest.mark.parametrize("name", tuple(PARENTS))
def test_the_key_decides_and_the_global_state_does_not_move(name: str) -> None:
    fitness = np.arange(20.0)
    random.seed(1)
    before = random.getstate()
    first = PARENTS[name](fitness, 5, Key(3))
    assert random.getstate() == before
    random.seed(2)
    assert PARENTS[name](fitness, 5, Key(3)) == first
    assert PARENTS[name](fitness, 5, Key(4)) != first


@pytest.mark.parametrize("name", tuple(PARENTS))
def test_bad_fitness_is_named(name: str) -> None:
    with pytest.raises(FitnessError) as caught:
        PARENTS[name](np.array([1.0, float("nan")]), 1, Key(0))
    assert "The fitness of member 1 is nan" in str(caught.value)
    with pytest.raises(FitnessError) as caught:
        PARENTS[name](np.ones((2, 2)), 1, Key(0))
    assert "Fitness of shape (2, 2) cannot be selected on" in str(caught.value)


@pytest.mark.parametrize("name", tuple(PARENTS))
def test_too_many_parents_are_named(name: str) -> None:
    with pytest.raises(RunError) as caught:
        PARENTS[name](np.ones(2), 3, Key(0))
    assert "3 distinct members asked of 2" in str(caught.value)


def test_bad_parameters_are_named() -> None:
    with pytest.raises(EvomergeError) as caught:
        PARENTS["tournament"](np.ones(2), 1, Key(0), size=0)
    assert "tournament.size = 0: it should be greater than or equal to 1" in str(caught.value)
