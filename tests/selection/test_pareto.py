"""Pareto selection: fronts by brute force, DEAP's own NSGA-II, and knees that can be seen."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from deap import base, creator, tools
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.keys import Key
from evomerge.selection.parents import PARENTS
from evomerge.selection.pareto import crowded, fronts, knee, survivors

# Few different values, so that equal points and equal objectives are common, as with accuracies.
POINTS = st.integers(1, 4).flatmap(
    lambda m: st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), min_size=m, max_size=m), min_size=1)
)


def dominates(x: list[float], y: list[float]) -> bool:
    return all(a >= b for a, b in zip(x, y, strict=True)) and x != y


def own_deap(points: np.ndarray) -> list:
    """Return DEAP individuals made as its manual does."""
    if not hasattr(creator, "ParetoFitness3"):
        creator.create("ParetoFitness3", base.Fitness, weights=(1.0, 1.0, 1.0))
        creator.create("ParetoIndividual", list, fitness=creator.ParetoFitness3)
    individuals = [creator.ParetoIndividual([row]) for row in range(len(points))]
    for individual, point in zip(individuals, points.tolist(), strict=True):
        individual.fitness.values = point
    return individuals


@given(points=POINTS)
@settings(max_examples=80, deadline=None)
def test_a_front_is_who_only_earlier_fronts_dominate(points: list[list[float]]) -> None:
    left = list(range(len(points)))
    for front in fronts(np.array(points)):
        assert list(front) == [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        left = [i for i in left if i not in front]
    assert not left


@pytest.mark.parametrize("levels", [3, 10, 1000])
def test_survivors_are_those_of_deap(levels: int) -> None:
    points = Key(levels).numpy().integers(0, levels, size=(60, 3)) / levels
    for size in (1, 7, 30, 60, 80):
        assert list(survivors(points, size)) == [one[0] for one in tools.selNSGA2(own_deap(points), size)]
    assert survivors(points[:0], 5) == ()


def test_the_crowded_comparison_is_rank_then_crowding_distance() -> None:
    points = Key(3).numpy().integers(0, 12, size=(40, 3)) / 12
    individuals = own_deap(points)
    place = {}
    for rank, front in enumerate(tools.sortNondominated(individuals, len(individuals))):
        tools.emo.assignCrowdingDist(front)
        place |= {one[0]: (-rank, one.fitness.crowding_dist) for one in front}
    expected = [sum(place[i] > place[j] for j in range(40)) for i in range(40)]
    assert crowded(points).tolist() == expected
    assert len(set(expected)) > 20


def test_a_binary_tournament_prefers_the_front_then_the_less_crowded() -> None:
    # A front of four on a line, unevenly spaced, and one whom it dominates.
    points = np.array([[0.0, 1.0], [0.1, 0.9], [0.6, 0.4], [1.0, 0.0], [0.0, 0.0]])
    order = crowded(points)
    assert order.tolist() == [3, 1, 2, 3, 0]
    draws = Counter(PARENTS["tournament"](order, 1, Key(0).at(i), size=2)[0] for i in range(2000))
    # Of 25 pairs, who is drawn twice or with a lesser one wins; the two ends share the draws of both.
    for member, share in {0: 8 / 25, 3: 8 / 25, 2: 5 / 25, 1: 3 / 25, 4: 1 / 25}.items():
        assert abs(draws[member] / 2000 - share) < 4.5 * (share * (1 - share) / 2000) ** 0.5


# Knees


def test_a_bulging_front_has_its_knee_where_it_bulges() -> None:
    angles = np.linspace(0, np.pi / 2, 9)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert knee(circle, [0.0] * 9) == 4
    # Units do not matter: the front's ranges are the scale.
    assert knee(circle * [100.0, 0.01] + [3.0, -7.0], [0.0] * 9) == 4
    bent = np.array([[0.0, 1.0], [0.3, 0.95], [0.8, 0.6], [1.0, 0.0]])
    assert knee(bent, [9.0, 0.0, 0.0, 0.0]) == 2  # 0.3 + 0.95 < 0.8 + 0.6, whatever the values


def test_a_knee_of_three_objectives_is_beyond_the_plane_through_the_best_at_each() -> None:
    # The plane through the extremes is y1 / 1 + y2 / 1 + y3 / 1 = 1 only if each extreme is at 0 elsewhere; here not.
    points = np.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.2], [0.2, 0.0, 1.0], [0.35, 0.35, 0.35], [0.5, 0.5, 0.39]])
    assert knee(points, [0.0] * 5) == 4
    normal = np.linalg.solve(points[:3], np.ones(3))
    assert knee(points[:4], [0.0, 0.0, 1.0, 0.9]) == 2  # the fourth lies behind the plane: extremes tie, value decides
    assert points[3] @ normal < 1


def test_the_plane_is_tilted_as_the_extremes_are() -> None:
    # The plane through the extremes is 0.1 y1 + y2 + y3 = 1. By the sum alone the last would be the knee.
    points = np.array([[1.0, 0.0, 0.9], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.7, 0.6], [0.9, 0.2, 0.9]])
    np.testing.assert_allclose(points[:3] @ [0.1, 1.0, 1.0], 1)
    assert (points @ [0.1, 1.0, 1.0]).argmax() == 3
    assert points.sum(axis=1).argmax() == 4
    assert knee(points, [0.0] * 5) == 3


def test_one_who_is_best_at_several_tasks_leaves_the_plane_of_ones() -> None:
    points = np.array([[1.0, 1.0, 0.0], [0.0, 0.2, 1.0], [0.7, 0.7, 0.7], [0.9, 0.3, 0.5]])
    assert knee(points, [0.0] * 4) == 2


def test_a_plane_that_rises_in_an_objective_is_none() -> None:
    # Through the extremes: -0.8 y1 + y2 + y3 = 1, beyond which the last point would lie farthest.
    points = np.array([[1.0, 0.9, 0.9], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.95, 0.5]])
    assert knee(points, [0.0] * 4) == 0


def test_of_equally_good_extremes_the_one_that_is_better_elsewhere() -> None:
    # Through the first: y1 / 2 + y2 + y3 = 1; through the second, it would be 0.9 y1 + y2 + y3 = 1.
    points = np.array([[1.0, 0.5, 0.0], [1.0, 0.0, 0.1], [0, 1, 0], [0, 0, 1], [0.0, 0.6, 0.6], [0.9, 0.3, 0.3]])
    assert knee(points, [0.0] * 6) == 4
    assert knee(points[[1, 0, 2, 3, 4, 5]], [0.0] * 6) == 4


@pytest.mark.parametrize(
    ("points", "values", "expected"),
    [
        ([[0.5]], [1.0], 0),
        ([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.0, 1.0], 1),
        ([[0.5], [0.5]], [1.0, 2.0], 1),
        ([[0.0, 1.0], [1.0, 0.0]], [1.0, 2.0], 1),
        ([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], [1.0, 2.0, 2.0], 1),
        ([[0.3, 0.3, 0.3]] * 3, [0.0, 5.0, 5.0], 1),
        ([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], [0.0, 0.0, 1.0], 2),  # a straight line bends nowhere
        ([[0.0, 1.0], [0.1, 0.9], [0.7, 0.3], [1.0, 0.0]], [0.0, 1.0, 1.0, 0.0], 1),
        ([[0.0, 1.0], [0.2, 0.3], [1.0, 0.0]], [1.0, 9.0, 2.0], 2),  # nor a hollow front
        ([[0.0, 1.0, 0.4], [0.7, 0.8, 0.4], [1.0, 0.0, 0.4]], [1.0, 0.0, 1.0], 1),  # the last task differs nowhere
    ],
)
def test_small_and_flat_fronts(points: list[list[float]], values: list[float], expected: int) -> None:
    assert knee(np.array(points), values) == expected
