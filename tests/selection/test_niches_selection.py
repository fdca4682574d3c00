"""Competition for examples: the published formula written out, who survives it, and who attracts whom."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.keys import Key
from evomerge.selection.niches import match, resources, shares, survivors
from evomerge.types import Score

TAKEN = st.integers(1, 5).flatmap(
    lambda m: st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=m, max_size=m), min_size=1, max_size=7)
)


def plain(taken: list[list[float]], alpha: float) -> list[float]:
    """Return ``sum_j s_ij / (sum_k s_kj)^alpha`` by loops."""
    fitness = []
    for row in taken:
        total = 0.0
        for example, amount in enumerate(row):
            everybody = sum(other[example] for other in taken)
            if everybody > 0:
                total += amount / everybody**alpha
        fitness.append(total)
    return fitness


@given(taken=TAKEN, alpha=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
@settings(max_examples=80, deadline=None)
def test_fitness_is_the_published_formula(taken: list[list[float]], alpha: float) -> None:
    np.testing.assert_allclose(shares(np.array(taken), alpha).sum(axis=1), plain(taken, alpha), rtol=1e-12)


@given(taken=TAKEN, alpha=st.sampled_from([0.0, 1.0]), size=st.integers(1, 7))
@settings(max_examples=80, deadline=None)
def test_the_least_fit_leaves_one_after_the_other(taken: list[list[float]], alpha: float, size: int) -> None:
    left = list(range(len(taken)))
    while len(left) > size:
        fitness = plain([taken[row] for row in left], alpha)
        weakest = min(fitness)
        found = survivors(np.array(taken)[left], len(left) - 1, alpha)
        (gone,) = set(range(len(left))) - set(found)
        assert fitness[gone] == pytest.approx(weakest, rel=1e-12)
        left = [left[row] for row in found]
    assert list(survivors(np.array(taken), size, alpha)) == left


def test_a_specialist_outlives_many_equal_generalists() -> None:
    generalist, specialist = [1.0] * 8 + [0.0] * 2, [0.0] * 8 + [1.0] * 2
    taken = np.array([generalist] * 10 + [specialist])
    assert survivors(taken, 5, 1.0) == (0, 1, 2, 3, 10)
    assert survivors(taken, 2, 1.0) == (0, 1)  # half of what a generalist knows is still twice as much
    taken[10, 3:8] = 1  # it knows 7 examples, but 5 of them are the generalists' too: 2 + 5 / 3 < 3 / 2 + 5 / 3
    assert survivors(taken, 2, 1.0) == (0, 10)
    assert survivors(taken, 5, 0.0) == (0, 1, 2, 3, 4)  # without competition the better total wins
    assert survivors(taken, 20, 1.0) == tuple(range(11))


def test_the_match_maker_draws_by_fitness_and_then_by_attraction() -> None:
    taken = np.array([[4.0, 0.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    draws = [match(taken, 1.0, Key(0).at(i)) for i in range(900)]
    share = taken / [7, 2, 1]
    fitness = share.sum(axis=1)
    first = Counter(pair[0] for pair in draws)
    for member, probability in enumerate(fitness / fitness.sum()):
        assert abs(first[member] / 900 - probability) < 4.5 * (probability * (1 - probability) / 900) ** 0.5
    for chosen in range(4):
        attraction = np.array([sum(max(0.0, x) for x in share[k] - share[chosen]) for k in range(4)])
        second = Counter(pair[1] for pair in draws if pair[0] == chosen)
        assert second[chosen] == 0
        for member, probability in enumerate(attraction / attraction.sum()):
            error = 4.5 * (probability * (1 - probability) / first[chosen]) ** 0.5
            assert abs(second[member] / first[chosen] - probability) <= error
    assert draws == [match(taken, 1.0, Key(0).at(i)) for i in range(900)]


def test_who_has_nothing_new_is_drawn_uniformly() -> None:
    for taken in (np.zeros((3, 2)), np.ones((3, 2))):
        pairs = Counter(match(taken, 1.0, Key(1).at(i)) for i in range(600))
        assert set(pairs) == {(i, j) for i in range(3) for j in range(3) if i != j}
        assert min(pairs.values()) > 60


# What is competed for


def test_examples_of_all_tasks_are_resources() -> None:
    scores = [
        Score(0.0, {"a": 0.5, "b": 0.0}, {"a": (1.0, 0.0), "b": (0.0,)}),
        Score(0.0, {"b": 1.0, "a": 0.0}, {"b": (1.0,), "a": (0.0, 0.25)}),
    ]
    assert resources(scores).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.25, 1.0]]


@pytest.mark.parametrize("other", [{}, {"a": ()}, {"a": (1.0, 1.0, 0.0)}])
def test_a_task_whose_examples_not_everybody_has_is_one_example(other: dict[str, tuple[float, ...]]) -> None:
    scores = [
        Score(0.0, {"a": 0.75, "b": 0.5}, {"a": (1.0, 0.5), "b": (1.0, 0.0)}),
        Score(0.0, {"a": 0.6, "b": 0.5}, {**other, "b": (0.0, 1.0)}),
    ]
    assert resources(scores).tolist() == [[0.75, 1.0, 0.0], [0.6, 0.0, 1.0]]
    assert resources(scores[::-1]).tolist() == [[0.6, 0.0, 1.0], [0.75, 1.0, 0.0]]


def test_without_tasks_the_value_is_what_there_is() -> None:
    assert resources([Score(2.0), Score(0.5)]).tolist() == [[2.0], [0.5]]


def test_negative_scores_are_lifted_example_by_example() -> None:
    scores = [Score(0.0, {"a": 0.0}, {"a": row}) for row in ((-3.0, 1.0, 0.0), (-1.0, 2.0, -4.0))]
    assert resources(scores).tolist() == [[0.0, 1.0, 4.0], [2.0, 2.0, 0.0]]
