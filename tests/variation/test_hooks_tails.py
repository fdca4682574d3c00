"""Tail statistics, on samples of known tails."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from evomerge.keys import Key
from evomerge.variation.hooks.tails import excess_kurtosis, hill, tails

N = 400_000
RANDOM = Key(0).at("tails").numpy()


def expected_index(distribution: stats.rv_continuous, top: float) -> float:
    """Return what Hill's estimator tends to: 1 / E[log(|X| / u) | |X| > u], u the upper quantile of |X|."""
    u = distribution.isf(top / 2)
    above, _ = integrate.quad(lambda x: math.log(x / u) * 2 * distribution.pdf(x), u, np.inf)
    return top / above


@pytest.mark.parametrize("index", [1.0, 2.5, 6.0])
@pytest.mark.parametrize("top", [0.001, 0.05, 0.5])
def test_a_power_law_gives_its_index_at_any_share(index: float, top: float) -> None:
    signs = np.where(RANDOM.random(N) < 0.5, -1, 1)
    found = hill(signs * (1 + RANDOM.pareto(index, N)), top)
    assert found is not None
    assert abs(found.index - index) < 4 * found.error
    assert found.error == pytest.approx(found.index / math.sqrt(top * N))


@pytest.mark.parametrize(
    ("distribution", "at_5_percent"), [(stats.t(3), 2.64), (stats.norm(), 5.99), (stats.t(1), 1.0)]
)
def test_other_tails_give_what_the_integral_says(distribution: stats.rv_continuous, at_5_percent: float) -> None:
    found = hill(distribution.rvs(N, random_state=RANDOM))
    assert found is not None
    assert abs(found.index - expected_index(distribution, 0.05)) < 5 * found.error
    assert found.index == pytest.approx(at_5_percent, abs=0.15)


def test_far_out_student_s_t_shows_its_index_and_a_gaussian_none() -> None:
    assert expected_index(stats.t(3), 1e-4) == pytest.approx(3, abs=0.03)
    far = hill(stats.t(3).rvs(N, random_state=RANDOM), 5e-4)
    assert far is not None
    assert abs(far.index - 3) < 4 * far.error
    gaussian = [hill(RANDOM.standard_normal(N), top) for top in (0.05, 0.005, 0.0005)]
    indices = [found.index for found in gaussian if found]
    assert indices == sorted(indices)
    assert indices[-1] > 11


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RANDOM.standard_normal(N), 0.0),
        (RANDOM.uniform(size=N), -1.2),
        (RANDOM.laplace(size=N), 3.0),
        (RANDOM.choice([-1.0, 1.0], N), -2.0),
    ],
)
def test_excess_kurtosis(values: np.ndarray, expected: float) -> None:
    found = excess_kurtosis(values)
    assert found == pytest.approx(expected, abs=0.15)
    assert found == pytest.approx(stats.kurtosis(values), abs=1e-9)
    assert excess_kurtosis(1e-3 * values.astype(np.float32) + 0.01) == pytest.approx(found, abs=0.01)


def test_by_hand() -> None:
    # The 3 largest of 60 magnitudes over the fourth: 8, 4, 2 to 1: mean log = 2 log 2.
    found = hill(np.array([8.0, -4.0, 2.0, -1.0, *[0.5] * 56]))
    assert found is not None
    assert found.index == pytest.approx(1 / (2 * math.log(2)))
    assert found.error == pytest.approx(found.index / math.sqrt(3))
    # 0, 0, 0, 4: squares about the mean 1, 1, 1, 9; fourth powers 1, 1, 1, 81: 21 / 9 - 3.
    assert excess_kurtosis(np.array([0.0, 0.0, 0.0, 4.0])) == pytest.approx(21 / 9 - 3)


@pytest.mark.parametrize("values", [[], [1.0], [0.0] * 100, [2.0] * 100, [1.0] * 39, [5.0] + [0.0] * 99])
def test_what_cannot_tell_says_nothing(values: list[float]) -> None:
    assert hill(np.array(values)) is None
    if len(set(values)) < 2:
        assert excess_kurtosis(np.array(values)) is None


def test_a_genome_tells_the_median_of_those_that_can() -> None:
    shapes = [RANDOM.standard_normal((100, 50)), RANDOM.standard_t(3, (60, 60)), 1 + RANDOM.pareto(1.0, 4000)]
    found = tails([np.zeros(30), *shapes, np.ones((4, 4))])
    indices = sorted(each.index for shape in shapes if (each := hill(shape.ravel())))
    assert found.index == indices[1]
    assert found.kurtosis == sorted(stats.kurtosis(shape.ravel()) for shape in shapes)[1]
    nothing = tails([np.zeros(30)])
    assert (nothing.kurtosis, nothing.index, nothing.error) == (None, None, None)
