from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.experts.gram import Gram, gram
from evomerge.experts.pool import load_pool
from evomerge.experts.variance import Equicorrelated, compare, correlations, merged_variance, variances
from evomerge.keys import Key
from evomerge.spaces.subspace import Subspace


def pool_of(products, size: int = 10) -> Gram:
    products = np.asarray(products, np.float64)
    return Gram(tuple(f"e{i}" for i in range(len(products))), products, size)


def vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Experts of several sizes that have something in common."""
    random = Key(seed).numpy()
    return (random.normal(size=(n, d)) + random.normal(size=d)) * random.uniform(0.5, 2, size=(n, 1))


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return vectors(6, 40)


@pytest.fixture(scope="module")
def measured(weights) -> Gram:
    return pool_of(weights @ weights.T, weights.shape[1])


def test_variances_are_mean_squares_and_correlations_cosines(weights, measured):
    np.testing.assert_allclose(variances(measured), (weights**2).mean(axis=1))
    units = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    np.testing.assert_allclose(correlations(measured), units @ units.T)
    assert (np.diagonal(correlations(measured)) == 1).all()


def test_correlations_stay_within_one_when_products_are_rounded():
    rho = correlations(pool_of([[1.0, 1.0000001], [1.0000001, 1.0]]))
    assert rho.max() == 1


def test_equation_18_is_the_variance_of_every_linear_merge(weights, measured):
    for seed in range(5):
        a = Key(seed).numpy().normal(size=len(weights))
        merged = a @ weights
        assert merged_variance(measured, a) == pytest.approx((merged**2).mean())
        # as printed, with sigma_i and rho_ij
        sigma, rho = np.sqrt(variances(measured)), correlations(measured)
        pairs = sum(a[i] * a[j] * rho[i, j] * sigma[i] * sigma[j] for i, j in itertools.permutations(range(6), 2))
        assert merged_variance(measured, a) == pytest.approx(float((a**2 * sigma**2).sum()) + pairs)


def test_equation_18_on_merges_of_lora_experts(make_adapter):
    pool = load_pool(
        [make_adapter(f"v{i}", seed=i, rank=2 + i, target_modules=["q_proj", "down_proj"]) for i in range(3)]
    )
    space, found = Subspace.of(pool), gram(pool.adapters)
    genomes = torch.stack([space.encode(adapter) for adapter in pool.adapters])
    a = torch.tensor([0.7, -0.2, 0.4])
    assert found.size == 2 * (32 * 32 + 32 * 64)
    assert merged_variance(found, a.tolist()) == pytest.approx(space.norm(a @ genomes) ** 2 / found.size, rel=1e-5)


def test_a_merge_that_cancels_has_variance_zero():
    opposite = pool_of([[1.0, -1.0000001], [-1.0000001, 1.0]])
    assert merged_variance(opposite, [0.5, 0.5]) == 0
    pair = Equicorrelated.of(opposite)
    assert pair.correlation == pytest.approx(-1)
    assert (pair.uniform(2), pair.limit) == (0, 0)
    assert pair.drop(2) == pytest.approx(0.1)


@pytest.mark.parametrize("k", range(1, 7))
def test_equation_21_is_the_mean_over_all_subsets(weights, measured, k):
    subsets = [weights[list(rows)].mean(axis=0) for rows in itertools.combinations(range(6), k)]
    assert Equicorrelated.of(measured).uniform(k) == pytest.approx(np.mean([(m**2).mean() for m in subsets]))


def test_equations_19_20_and_1_where_experts_are_alike():
    sigma2, rho, n = 0.3, 0.2, 5
    alike = pool_of(10 * sigma2 * (rho + (1 - rho) * np.eye(n)), 10)
    pool = Equicorrelated.of(alike)
    assert (pool.variance, pool.correlation) == (pytest.approx(sigma2), pytest.approx(rho))
    for a in ([0.5, 0.5, 0, 0, 0], [0.6, 0.1, 0.1, 0.1, 0.1], [1, 1, -0.5, 0, 0]):
        assert pool.merged(a) == pytest.approx(merged_variance(alike, a))
    a = [0.6, 0.1, 0.1, 0.1, 0.1]
    assert pool.merged(a) == pytest.approx(sigma2 * (rho + (1 - rho) * sum(x * x for x in a)))
    assert pool.merged([0.2] * 5) == pytest.approx(pool.uniform(5))


def test_the_limit_and_the_drop_are_those_of_the_curve():
    pool = Equicorrelated(0.3, 0.25)
    assert pool.limit == pytest.approx(pool.uniform(10**9))
    for n in range(2, 9):
        assert pool.drop(n) == pytest.approx(pool.uniform(n - 1) - pool.uniform(n))
        assert pool.drop(n, relative=True) == pytest.approx(pool.drop(n) / 0.3)
    assert Equicorrelated(0.3, -0.1).limit == 0


def brute_force(pool: Equicorrelated, min_drop: float, relative: bool) -> int:
    n = 1
    while pool.drop(n + 1, relative=relative) >= min_drop:
        n += 1
    return n


@settings(max_examples=300, deadline=None)
@given(
    rho=st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 1.0, -1.0, 0.1, 0.7, 0.9])),
    variance=st.sampled_from([1.0, 0.3, 1e-9, 7.0]),
    divisor=st.integers(1, 300),
    nudge=st.integers(-2, 2),
    relative=st.booleans(),
)
def test_n_max_is_that_of_brute_force_at_every_edge(rho, variance, divisor, nudge, relative):
    pool = Equicorrelated(variance, rho)
    edge = pool.drop(divisor + 1, relative=relative)  # exactly the drop of some n, or a few roundings beside it
    for _ in range(abs(nudge)):
        edge = math.nextafter(edge, math.inf if nudge > 0 else 0)
    if edge < 1e-300:
        edge = 1e-4
    assert pool.n_max(edge, relative=relative) == brute_force(pool, edge, relative)


@pytest.mark.parametrize("percent", range(1, 60))
def test_n_max_is_equation_26(percent):
    min_drop, rho = percent / 100, 0.123
    expected = math.floor(math.sqrt((1 - rho) / min_drop + 1 / 4) + 1 / 2)
    assert Equicorrelated(7.0, rho).n_max(min_drop) == expected
    assert Equicorrelated(7.0, rho).n_max(7 * min_drop, relative=False) == expected


def test_decimal_thresholds_of_orthogonal_experts_are_met():
    assert [Equicorrelated(0.3, 0.0).n_max(drop) for drop in (0.5, 0.05, 0.02, 0.01)] == [2, 5, 7, 10]


def test_n_max_of_odd_pools():
    identical = Equicorrelated.of(pool_of([[2.0, 2.0000001], [2.0000001, 2.0]]))
    assert identical.correlation == 1
    assert [identical.n_max(drop) for drop in (1e-9, 0.02, 3)] == [1, 1, 1]
    assert identical.uniform(2) == identical.limit == 0.2
    alone = Equicorrelated.of(pool_of([[4.0]]))
    assert alone == Equicorrelated(0.4, 1.0)
    assert (alone.n_max(0.02), alone.uniform(1), alone.limit) == (1, 0.4, 0.4)
    assert Equicorrelated(0.3, -0.5).n_max(0.75) == 2
    assert Equicorrelated(0.3, 0.0).n_max(5e-324) > 10**100
    assert Equicorrelated(0.3, 0.0).n_max(1e-20) == 10**10


@pytest.mark.parametrize("min_drop", [0, -0.1, math.inf, math.nan])
def test_a_threshold_must_be_positive(min_drop):
    with pytest.raises(RecipeError) as caught:
        Equicorrelated(0.3, 0.1).n_max(min_drop)
    assert caught.value.cause == f"min_drop is {min_drop}, not a positive number"
    assert (caught.value.where, "0.02" in caught.value.fix) == ("pool.stop.min_drop", True)


def test_the_curve_of_actual_merges_has_the_unit_of_the_prediction(weights, measured):
    norms = {k: float((weights[:k].mean(axis=0) ** 2).sum()) for k in (6, 1, 3)}
    points = compare(measured, norms)
    assert [point.n for point in points] == [1, 3, 6]
    assert points[2].measured == pytest.approx(points[2].predicted)
    assert points[0].measured == pytest.approx(variances(measured)[0])
    assert points[0].predicted == pytest.approx(variances(measured).mean())
