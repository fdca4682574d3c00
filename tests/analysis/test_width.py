from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import gammaln

from evomerge.analysis.width import Ellipsoid, Spectrum
from evomerge.errors import RunError
from evomerge.keys import Key

CURVATURES = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8)


def test_width_by_hand() -> None:
    # 2 eps = 1, and 1/4 + 1 + 4 = 5.25.
    assert Ellipsoid.of(np.array([1.0, 0.25, 4.0]), 0.5).width() == pytest.approx(math.sqrt(5.25))


def test_radii_touch_the_surface() -> None:
    ellipsoid = Ellipsoid.of(np.array([2.0, 0.5, 8.0]), 0.3)
    assert ellipsoid.curvatures * ellipsoid.radii**2 == pytest.approx(np.full(3, 0.6))


def test_what_curves_down_or_not_at_all_is_counted() -> None:
    ellipsoid = Ellipsoid.of(np.array([3.0, 0.0, -2.0, 1e-9, -1e-9, 1.0]), 0.1)
    assert (ellipsoid.flat, ellipsoid.negative) == (3, 1)
    assert list(ellipsoid.curvatures) == [3.0, 1.0]


def test_nothing_curves_up() -> None:
    ellipsoid = Ellipsoid.of(np.array([-1.0, 0.0]), 0.1)
    assert (ellipsoid.width(), len(ellipsoid.gains("falling"))) == (0.0, 0)
    assert (ellipsoid.flat, ellipsoid.negative) == (1, 1)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf])
def test_a_tolerance_is_positive(eps: float) -> None:
    with pytest.raises(RunError, match=rf"The tolerance eps is {eps}, not a positive number"):
        Ellipsoid.of(np.ones(2), eps)


@given(CURVATURES, st.sampled_from(["falling", "rising"]))
def test_gains_add_up_to_the_width(values: list[float], order: str) -> None:
    ellipsoid = Ellipsoid.of(np.array(values), 0.2)
    assert ellipsoid.gains(order).sum() == pytest.approx(ellipsoid.width())


@given(CURVATURES)
def test_gains_fall_for_rising_eigenvalues(values: list[float]) -> None:
    gains = Ellipsoid.of(np.array(values), 0.2).gains("rising")
    assert (np.diff(gains) < 0).all()


def test_gains_need_not_fall_for_falling_eigenvalues() -> None:
    gains = Ellipsoid.of(np.array([0.25, 1.0]), 0.5).gains("falling")
    assert gains == pytest.approx([1.0, math.sqrt(5) - 1])


@pytest.mark.parametrize("d", [1, 2, 5, 40])
def test_the_definition_of_a_ball(d: int) -> None:
    # E ||g|| = sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2), a closed form without Jensen's step.
    exact = 0.4 * math.sqrt(2) * math.exp(gammaln((d + 1) / 2) - gammaln(d / 2))
    ellipsoid = Ellipsoid.of(np.full(d, 1.0), 0.08)
    found = ellipsoid.sampled_width(Key(1), 20_000)
    assert abs(found.value - exact) < 4 * found.error
    assert found.error == pytest.approx(0.4 * math.sqrt(d - (exact / 0.4) ** 2) / math.sqrt(20_000), rel=0.05)
    assert ellipsoid.width() / exact - 1 == pytest.approx({1: 0.253, 2: 0.128, 5: 0.051, 40: 0.00627}[d], abs=1e-3)


def test_the_definition_of_an_ellipse() -> None:
    # 1/2 sup <g, x - y> over the ellipse, searched for point by point; its mean over the angle of g is numeric.
    curvatures, eps = np.array([4.0, 0.3]), 0.5
    angles = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    limit = {"type": "ineq", "fun": lambda x: 2 * eps - curvatures @ x**2}

    def support(g):
        start = 0.1 * np.sign(g)
        return -minimize(lambda x: -(g @ x), start, jac=lambda _: -g, constraints=limit, method="SLSQP").fun

    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    half = np.mean([(support(g) + support(-g)) / 2 for g in directions])
    exact = half * math.sqrt(math.pi / 2)  # E ||g|| in two dimensions
    found = Ellipsoid.of(curvatures, eps).sampled_width(Key(2), 40_000)
    assert abs(found.value - exact) < 4 * found.error + 1e-4


@given(CURVATURES)
def test_jensen_bounds_the_definition_from_above(values: list[float]) -> None:
    ellipsoid = Ellipsoid.of(np.array(values), 0.2)
    found = ellipsoid.sampled_width(Key(3), 500)
    assert math.sqrt(2 / math.pi) * ellipsoid.width() - 4 * found.error < found.value
    assert found.value < ellipsoid.width() + 4 * found.error


def planted(key: Key, curvatures: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Experts ``[M, d]`` in a space where the loss has these curvatures along hidden orthogonal axes."""
    draw = key.numpy()
    axes = np.linalg.qr(draw.standard_normal((9, len(curvatures))))[0]
    mixing = draw.standard_normal((experts, len(curvatures))) * np.logspace(-2, 2, experts)[:, None]
    return axes, mixing @ axes.T, axes @ np.diag(curvatures) @ axes.T


def test_curvatures_are_those_of_the_weights() -> None:
    curvatures = np.array([5.0, 2.0, 0.5, -1.0])
    _, experts, whole = planted(Key(4), curvatures, 4)
    spectrum = Spectrum.of(experts @ whole @ experts.T, experts @ experts.T)
    assert spectrum.values == pytest.approx(curvatures)
    steps = spectrum.directions.T @ experts
    assert steps @ steps.T == pytest.approx(np.eye(4), abs=1e-8)
    assert steps @ whole @ steps.T == pytest.approx(np.diag(curvatures), abs=1e-8)


def test_equal_and_zero_experts_add_no_direction() -> None:
    _, experts, whole = planted(Key(5), np.array([5.0, 2.0]), 2)
    more = np.stack([experts[0], experts[1], experts[0], np.zeros(9)])
    spectrum = Spectrum.of(more @ whole @ more.T, more @ more.T)
    assert spectrum.values == pytest.approx([5.0, 2.0])
    assert spectrum.directions.shape == (4, 2)
