from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import chi2

from evomerge.analysis.cones import checks, circular, circular_dimension, cone, experts_cone, polyhedral
from evomerge.keys import Key


def near(estimate, exact: float) -> bool:
    return abs(estimate.value - exact) < 4 * estimate.error + 1e-9


@pytest.mark.parametrize("d", [1, 4, 9])
def test_orthants(d: int) -> None:
    found = cone(polyhedral(np.eye(d)), d, Key(1))
    assert near(found.dimension, d / 2)
    assert found.dimension.error < 0.06 * math.sqrt(d)


def test_a_subspace_has_its_dimension() -> None:
    basis = np.linalg.qr(Key(2).numpy().standard_normal((7, 3)))[0]
    assert near(cone(polyhedral(np.hstack([basis, -basis])), 7, Key(3)).dimension, 3)


def test_a_ray_has_one_half_and_its_width_is_that_of_half_a_gaussian() -> None:
    found = cone(polyhedral(np.array([[0.0], [5.0]])), 2, Key(4), 4000)
    assert near(found.dimension, 0.5)
    assert near(found.width, 1 / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("angle", [0.2, math.pi / 4, 1.1])
def test_two_generators_in_the_plane(angle: float) -> None:
    # A wedge of angle a: 2 a / (2 pi) of the plane stays, and two half-planes' worth of edges gives 1/2 at each angle.
    wedge = np.array([[1.0, math.cos(angle)], [0.0, math.sin(angle)]])
    assert near(cone(polyhedral(wedge), 2, Key(5), 4000).dimension, 2 * angle / (2 * math.pi) + 0.5)


def test_projections_satisfy_moreaus_conditions() -> None:
    draw = Key(6).numpy()
    generators = draw.standard_normal((5, 4))
    for point in draw.standard_normal((20, 5)):
        for project, inside in ((polyhedral(generators), generators), (partial(circular, angle=0.7), surface(draw))):
            nearest = project(point)
            assert nearest @ (point - nearest) == pytest.approx(0, abs=1e-8)
            assert ((point - nearest) @ inside < 1e-8).all()
            assert project(nearest) == pytest.approx(nearest, abs=1e-8)


def surface(draw) -> np.ndarray:
    """Points on the surface of the circular cone of angle 0.7 in five dimensions, ``[5, 50]``."""
    around = draw.standard_normal((4, 50))
    return np.vstack([np.full((1, 50), math.cos(0.7)), math.sin(0.7) * around / np.linalg.norm(around, axis=0)])


@pytest.mark.parametrize(("d", "angle"), [(2, 0.4), (3, 0.4), (8, 0.9), (30, 1.2)])
def test_circular_cones(d: int, angle: float) -> None:
    exact = circular_dimension(d, angle)
    assert near(cone(partial(circular, angle=angle), d, Key(7), 4000).dimension, exact)
    assert abs(exact - d * math.sin(angle) ** 2) < 1.5  # Amelunxen et al. 2014: up to a bounded term


def test_circular_cones_that_are_something_else() -> None:
    assert circular_dimension(2, 0.4) == pytest.approx(2 * 0.8 / (2 * math.pi) + 0.5)  # a wedge of twice the angle
    assert circular_dimension(6, 0.0) == pytest.approx(0.5)  # a ray
    assert circular_dimension(6, math.pi / 2) == pytest.approx(5.5)  # a half-space
    # The light cone is its own polar up to sign, and delta(C) + delta(polar of C) = d.
    assert circular_dimension(9, math.pi / 4) == pytest.approx(4.5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 6))
def test_width_and_dimension(seed: int, d: int, count: int) -> None:
    found = cone(polyhedral(Key(seed).numpy().standard_normal((d, count))), d, Key(8), 300)
    assert found.width.value**2 <= found.dimension.value + 1e-9
    assert found.dimension.value <= found.width.value**2 + 1 + 4 * found.dimension.error


def test_the_cone_of_experts_is_that_of_their_weights() -> None:
    experts = Key(9).numpy().standard_normal((4, 6)) * np.array([[0.01], [1], [30], [2]])
    there = cone(polyhedral(experts.T), 6, Key(10), 6000).dimension
    found = experts_cone(experts @ experts.T, Key(11), 6000).dimension
    assert abs(found.value - there.value) < 4 * math.hypot(found.error, there.error)


def test_cones_of_experts_that_agree_or_oppose() -> None:
    def dimension(correlation: float) -> float:
        gram = np.full((5, 5), correlation) + (1 - correlation) * np.eye(5)
        return experts_cone(gram, Key(12), 3000).dimension.value

    assert dimension(0) == pytest.approx(2.5, abs=0.1)
    assert dimension(1) == pytest.approx(0.5, abs=0.05)
    assert dimension(0.5) < 2.0 < 3.0 < dimension(-0.2)
    # At -1/4 the five sum to zero: a subspace of dimension four.
    assert dimension(-0.25) == pytest.approx(4.0, abs=0.12)


def test_a_zero_expert_adds_nothing() -> None:
    found = experts_cone(np.diag([1.0, 0.0, 4.0]), Key(13), 3000).dimension
    assert near(found, 1.0)


def test_checks_are_within_their_errors() -> None:
    found = checks(Key(14), draws=1000)
    assert len(found) == 3
    assert all(near(estimate, exact) for estimate, exact in found.values())
    assert [round(exact, 6) for _, exact in found.values()] == [4.0, 4.0, 4.0]


def meets(generators: np.ndarray, k: int, draw) -> bool:
    """Whether a pointed cone and a random subspace of dimension k have more than the origin in common."""
    d, count = generators.shape
    outside = np.linalg.qr(draw.standard_normal((d, d)))[0][:, k:]
    equations = np.vstack([outside.T @ generators, np.ones((1, count))])
    return linprog(np.zeros(count), A_eq=equations, b_eq=np.append(np.zeros(d - k), 1.0)).status == 0


@pytest.mark.parametrize(("k", "wanted"), [(2, 0.0), (10, 0.5), (18, 1.0)])
def test_a_random_subspace_meets_a_cone_by_the_sum_of_dimensions(k: int, wanted: float) -> None:
    # Equation 12 for the orthant of 20 dimensions, delta = 10: the change is at k = 10.
    d, draw = 20, Key(15).numpy()
    delta = cone(polyhedral(np.eye(d)), d, Key(16), 500).dimension
    share = np.mean([meets(np.eye(d), k, draw) for _ in range(60)])
    assert (delta.value + k > d + 3) == (wanted == 1.0)
    assert share == pytest.approx(wanted, abs=0.25 if wanted == 0.5 else 0.02)


def test_squared_lengths_on_the_orthant_mix_chi_squares() -> None:
    # ||Pi(g)||^2 is chi-square with as many degrees of freedom as g has positive entries.
    d, project = 6, polyhedral(np.eye(6))
    squares = [np.linalg.norm(project(g)) ** 2 for g in Key(17).numpy().standard_normal((3000, d))]
    exact = sum(math.comb(d, j) / 2**d * chi2.cdf(3.0, j) for j in range(1, d + 1)) + 1 / 2**d
    assert np.mean(np.array(squares) < 3.0) == pytest.approx(exact, abs=0.035)
