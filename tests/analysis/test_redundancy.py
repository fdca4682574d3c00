from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.analysis.redundancy import enough, redundancy
from evomerge.errors import RunError
from evomerge.keys import Key


def test_orthonormal_experts_by_hand() -> None:
    # d = 2, H = diag(1, 4), 2 eps = 1: r^2 = 1 and 1/4.
    base, one, both = redundancy(np.diag([1.0, 4.0]), np.eye(2), 0.5)
    # From the base: R^2 = ||(1/2, 1/2)||^2 = 1/2, f = 2/3 and 1/3.
    assert (base.k, base.distance**2, base.right) == pytest.approx((0, 0.5, 1.0))
    # One merged: R = ||(1, 0) - (1/2, 1/2)||, and only the second expert is left, f = 1/3.
    assert (one.k, one.distance**2, one.right) == pytest.approx((1, 0.5, 2 - 1 / 3))
    assert one.needed == pytest.approx(1.0)
    assert (both.k, both.distance, both.right, both.needed) == pytest.approx((2, 0.0, 2.0, 0.0))
    assert [row.slack for row in (base, one, both)] == pytest.approx([1.0, 2 / 3, 0.0])
    assert enough((base, one, both)) == 1


def test_radii_are_those_of_what_is_not_merged() -> None:
    # Experts that overlap: the block's curvature by norm is h / g, not an eigenvalue of the whole.
    hessian, gram = np.array([[3.0, 1.0], [1.0, 8.0]]), np.array([[1.0, 0.5], [0.5, 4.0]])
    row = redundancy(hessian, gram, 0.1)[1]
    square = 2 * 0.1 / (8.0 / 4.0)
    weights = np.array([0.5, -0.5])
    assert row.distance**2 == pytest.approx(weights @ gram @ weights)
    assert row.right == pytest.approx(2 - square / (row.distance**2 + square))


@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(1e-6, 1e3), st.booleans())
def test_the_papers_condition_is_never_broken(seed: int, d: int, eps: float, positive: bool) -> None:
    draw = Key(seed).numpy()
    root = draw.standard_normal((d, d))
    hessian = root @ root.T if positive else root + root.T
    experts = draw.standard_normal((d, 10))
    rows = redundancy(hessian, experts @ experts.T, eps)
    assert len(rows) == d + 1
    assert all(row.holds for row in rows)
    assert all(row.k - 1e-9 <= row.right <= d + 1e-9 for row in rows)


def test_a_large_tolerance_makes_everything_redundant_and_a_small_one_nothing() -> None:
    hessian, gram = np.diag([1.0, 2.0, 3.0]), np.eye(3)
    wide, narrow = redundancy(hessian, gram, 1e9), redundancy(hessian, gram, 1e-9)
    assert [row.slack for row in wide] == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert [row.slack for row in narrow] == pytest.approx([3, 2, 1, 0], abs=1e-6)
    assert [row.right for row in narrow] == pytest.approx([3, 3, 3, 3], abs=1e-6)
    assert (enough(wide), enough(narrow)) == (1, 3)


def test_directions_without_a_radius_are_counted_as_redundant() -> None:
    rows = redundancy(np.diag([2.0, -1.0, 0.0]), np.eye(3), 0.1)
    assert [row.unbounded for row in rows] == [2, 2, 1, 0]
    assert rows[1].right == pytest.approx(1.0)


def test_equal_experts_leave_nothing_to_add() -> None:
    one = np.array([[1.0, 2.0, 2.0]])
    experts = np.repeat(one, 3, axis=0)
    rows = redundancy(experts @ experts.T, experts @ experts.T, 0.1)
    assert [row.distance for row in rows[1:]] == pytest.approx([0, 0, 0], abs=1e-7)
    assert [row.slack for row in rows[1:]] == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_tolerance_is_positive() -> None:
    with pytest.raises(RunError, match="The tolerance eps is 0, not a positive number"):
        redundancy(np.eye(2), np.eye(2), 0)
