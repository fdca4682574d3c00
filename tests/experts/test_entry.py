from __future__ import annotations

import itertools

import numpy as np
import pytest

from evomerge.errors import RecipeError
from evomerge.experts.entry import entry, judge, next_drop, order_of
from evomerge.experts.gram import Gram
from evomerge.experts.variance import Equicorrelated, merged_variance
from evomerge.keys import Key


def pool_of(products, size: int = 10) -> Gram:
    products = np.asarray(products, np.float64)
    return Gram(tuple(f"e{i}" for i in range(len(products))), products, size)


def alike(n: int, rho: float, size: int = 10) -> Gram:
    return pool_of(size * (rho + (1 - rho) * np.eye(n)), size)


@pytest.fixture(scope="module")
def mixed() -> Gram:
    random = Key(3).numpy()
    experts = (random.normal(size=(7, 30)) + random.normal(size=30)) * random.uniform(0.5, 2, size=(7, 1))
    return pool_of(experts @ experts.T, 30)


def uniform(gram: Gram, rows) -> float:
    return float(gram.products[np.ix_(rows, rows)].sum()) / len(rows) ** 2 / gram.size


def test_a_drop_is_the_difference_of_two_merges(mixed):
    for admitted in ([0], [2, 5], [6, 1, 3, 0]):
        for candidate in set(range(7)) - set(admitted):
            expected = uniform(mixed, admitted) - uniform(mixed, [*admitted, candidate])
            assert next_drop(mixed, admitted, candidate) == pytest.approx(expected, abs=1e-12)


def test_nobody_joins_twice_or_joins_nobody(mixed):
    with pytest.raises(ValueError, match="cannot join"):
        next_drop(mixed, [0, 1], 1)
    with pytest.raises(ValueError, match="cannot join"):
        next_drop(mixed, [], 1)


@pytest.mark.parametrize("rho", [-0.05, 0.0, 0.12, 0.5, 0.87, 1.0])
@pytest.mark.parametrize("min_drop", [0.5, 0.05, 0.02, 0.01])
def test_of_experts_alike_enter_as_many_as_equation_26_says(rho, min_drop):
    pool = alike(12, rho, 100)
    expected = Equicorrelated(1.0, rho).n_max(min_drop)
    found = entry(pool, range(12), 1, min_drop)
    assert found.admitted == min(expected, 12)
    np.testing.assert_allclose(found.variances, [Equicorrelated(1.0, rho).uniform(n) for n in range(1, 13)])
    np.testing.assert_allclose(found.drops, [Equicorrelated(1.0, rho).drop(n) for n in range(2, 13)], atol=1e-15)


def test_the_measured_curve_is_of_prefixes_in_the_order_of_entry(mixed):
    order = (4, 2, 6, 0, 1, 5, 3)
    found = entry(mixed, order, 2, 1e-9)
    assert found.order == order
    np.testing.assert_allclose(found.variances, [uniform(mixed, order[:k]) for k in range(1, 8)])
    np.testing.assert_allclose(found.drops, -np.diff(found.variances), atol=1e-12)
    assert found.variances[-1] == pytest.approx(merged_variance(mixed, [1 / 7] * 7))


def test_why_entry_stopped():
    pool = alike(10, 0.0, 100)
    found = entry(pool, range(10), 2, 0.02)  # 1 / (7 * 6) = 0.0238, 1 / (8 * 7) = 0.0179
    assert found.admitted == 7
    assert found.reason == (
        "'e7' would lower the variance of the merge by 1.79 % of one expert's; the threshold is 2 %"
    )
    absolute = entry(alike(10, 0.0, 1000), range(10), 2, 0.02, relative=False)
    assert absolute.admitted == 7
    assert absolute.reason == "'e7' would lower the variance of the merge by 0.0179; the threshold is 0.02"
    everyone = entry(pool, range(10), 2, 0.01)
    assert everyone.admitted == 10
    assert everyone.reason == (
        "All 10 experts enter: even 'e9' would lower the variance of the merge by 1.11 % of one expert's; "
        "the threshold is 1 %"
    )


def test_a_near_miss_does_not_read_as_a_hit():
    rho = 0.160001  # (1 - rho) / (7 * 6) = 0.01999998
    assert judge(alike(7, rho), range(6), 6, 0.02).sentence.endswith(
        "by 1.999998 % of one expert's; the threshold is 2 %"
    )


def test_relative_thresholds_are_shares_of_the_pools_mean_variance():
    pool = pool_of(np.diag([2.0, 2.0, 2.0, 6.0]), 1)  # mean 3; the third expert's drop is 2 / 6
    assert judge(pool, [0, 1], 2, 1 / 9 - 1e-9).admit
    assert not judge(pool, [0, 1], 2, 1 / 9 + 1e-9).admit
    assert judge(pool, [0, 1], 2, 0.33, relative=False).admit
    assert judge(pool, [0, 1], 2, 0.33, relative=False).drop == pytest.approx(1 / 3)


def test_a_large_expert_raises_the_variance_and_stays_out():
    found = entry(pool_of(np.diag([1.0, 1.0, 16.0, 1.0])), range(4), 2, 0.02)
    assert found.admitted == 2
    assert found.drops[1] < 0
    assert found.reason == (
        "'e2' would raise the variance of the merge by 31.6 % of one expert's; the threshold is 2 %"
    )  # 18/9 - 2/4 = 1.5, of 19/4


def test_copies_are_not_worth_merging():
    found = entry(pool_of(np.ones((3, 3)) + 1e-8 * np.eye(3)), range(3), 1, 0.02)
    assert found.admitted == 1
    assert found.reason == "'e1' would leave the variance of the merge as it is; the threshold is 2 %"
    np.testing.assert_allclose(found.drops, 0, atol=1e-8)


def test_opposite_experts_leave_nothing():
    rho = -1 / 3  # the least that four experts can have
    found = entry(alike(4, rho), range(4), 2, 0.02)
    assert found.admitted == 4
    assert found.variances[-1] == pytest.approx(0, abs=1e-15)
    assert min(found.variances) >= 0


def test_small_pools():
    alone = entry(pool_of([[3.0]]), [0])
    assert (alone.admitted, alone.drops, alone.variances) == (1, (), (0.3,))
    assert alone.reason == "The pool has 1 expert; entry begins with 2"
    assert entry(alike(2, 1.0), [1, 0]).reason == "The pool has 2 experts; entry begins with 2"
    assert entry(alike(2, 1.0), [1, 0]).admitted == 2
    assert entry(alike(2, 1.0), [1, 0], 1).admitted == 1


def test_what_cannot_be_asked(mixed):
    with pytest.raises(RecipeError) as caught:
        entry(mixed, range(7), 0)
    assert (caught.value.cause, caught.value.where) == ("start is 0: a merge begins with an expert", "pool.start")
    for bad in ({"min_drop": 0.0}, {"min_drop": float("nan")}):
        with pytest.raises(RecipeError, match="not a positive number"):
            entry(mixed, range(7), **bad)
        with pytest.raises(RecipeError, match="not a positive number"):
            judge(mixed, [0], 1, **bad)
    with pytest.raises(ValueError, match="not an order of 7 experts"):
        entry(mixed, [0, 0, 1, 2, 3, 4, 5])


def test_order_by_fitness_is_highest_first_and_stable(mixed):
    assert order_of(mixed, "fitness", [0.1, 0.5, 0.5, -1, 0.9, 0.1, 0.5]) == (4, 1, 2, 6, 0, 5, 3)
    assert order_of(mixed, "given") == tuple(range(7))
    with pytest.raises(ValueError, match="a fitness of each of the 7 experts"):
        order_of(mixed, "fitness")
    with pytest.raises(ValueError, match="a fitness of each of the 7 experts"):
        order_of(mixed, "fitness", [1.0])


def test_least_correlated_looks_at_angles_only():
    rho = np.array([[1, 0.9, 0.1, 0.3], [0.9, 1, 0.2, 0.2], [0.1, 0.2, 1, 0.3], [0.3, 0.2, 0.3, 1]])
    # Means with the others: 0.433, 0.433, 0.2, 0.267: expert 2; then 0 (0.1); then 3 (0.3) before 1 (0.55).
    assert order_of(pool_of(rho), "least_correlated") == (2, 0, 3, 1)
    sizes = np.diag([5.0, 0.1, 3.0, 1.0])
    assert order_of(pool_of(sizes @ rho @ sizes), "least_correlated") == (2, 0, 3, 1)
    # After 0 and 2: the mean of 0 and 0.5 is below 0.3, their largest is not.
    rho = np.array([[1, 0, -0.5, 0.3], [0, 1, 0.5, 0.6], [-0.5, 0.5, 1, 0.3], [0.3, 0.6, 0.3, 1]])
    assert order_of(pool_of(rho), "least_correlated") == (0, 2, 1, 3)
    signed = np.array([[1, -0.8, 0.3], [-0.8, 1, 0.0], [0.3, 0.0, 1]])
    assert order_of(pool_of(signed), "least_correlated") == (1, 0, 2)


def test_greedy_leaves_the_smallest_variance_at_every_step(mixed):
    order = order_of(mixed, "greedy")
    assert sorted(order) == list(range(7))
    for k, chosen in enumerate(order):
        rest = [uniform(mixed, [*order[:k], i]) for i in set(range(7)) - set(order[:k])]
        assert uniform(mixed, [*order[:k], chosen]) == pytest.approx(min(rest))
    # 0.9 + 1.4 is less than 0.9 + 1 + 2 * 0.3
    assert order_of(pool_of([[0.9, 0.3, 0], [0.3, 1, 0], [0, 0, 1.4]]), "greedy") == (0, 2, 1)


def test_greedy_and_least_correlated_differ_by_sizes():
    rho = np.array([[1, 0.5, 0.1], [0.5, 1, 0.4], [0.1, 0.4, 1]])
    sizes = np.diag([1.0, 1.1, 3.0])
    assert order_of(pool_of(sizes @ rho @ sizes), "greedy") == (0, 1, 2)
    assert order_of(pool_of(sizes @ rho @ sizes), "least_correlated") == (2, 0, 1)


@pytest.mark.parametrize("by", ["least_correlated", "greedy"])
def test_ties_go_by_the_given_order_whatever_the_rounding(by):
    for seed, rho in itertools.product(range(5), (0.0, 0.4, 1.0)):
        noise = 1e-8 * Key(seed).numpy().normal(size=(6, 6))
        pool = alike(6, rho, 1)
        assert order_of(pool_of(pool.products + noise + noise.T), by) == tuple(range(6))
    assert order_of(pool_of([[2.0]]), by) == (0,)
