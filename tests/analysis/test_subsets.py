from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.analysis.subsets import allocate, subsets
from evomerge.errors import RecipeError
from evomerge.keys import Key


@given(st.integers(1, 9), st.data())
def test_subsets_are_distinct_and_of_their_size(n: int, data: st.DataObject) -> None:
    k, count = data.draw(st.integers(1, n)), data.draw(st.integers(1, 20))
    found = subsets(n, k, count, Key(0))
    assert len(set(found)) == len(found) == min(count, math.comb(n, k))
    assert all(list(one) == sorted(set(one)) and len(one) == k and one[0] >= 0 and one[-1] < n for one in found)


@given(st.integers(2, 9), st.data())
def test_more_begin_with_those_before(n: int, data: st.DataObject) -> None:
    k, few, more = data.draw(st.integers(1, n)), data.draw(st.integers(1, 10)), data.draw(st.integers(1, 30))
    small, large = subsets(n, k, few, Key(7)), subsets(n, k, few + more, Key(7))
    assert set(small) <= set(large)
    if few + more < math.comb(n, k):
        assert large[:few] == small


def test_all_of_them_if_there_are_no_more() -> None:
    assert subsets(5, 2, 99, Key(0)) == tuple(combinations(range(5), 2))


def test_keys_decide() -> None:
    assert subsets(20, 5, 6, Key(0)) == subsets(20, 5, 6, Key(0)) != subsets(20, 5, 6, Key(1))


def test_every_expert_is_drawn_as_often() -> None:
    drawn = Counter(one for seed in range(600) for one in subsets(5, 2, 1, Key(seed)))
    # 10 subsets, 60 times each on average: chi-square of 9 degrees of freedom, 27.9 once in 1,000 times.
    assert sum((drawn[one] - 60) ** 2 / 60 for one in combinations(range(5), 2)) < 27.9


@pytest.mark.parametrize("k", [0, 4])
def test_no_subset_of_that_size(k: int) -> None:
    with pytest.raises(RecipeError) as refused:
        subsets(3, k, 1, Key(0))
    assert refused.value.cause == f"there is no subset of {k} of 3 experts"
    assert refused.value.fix == "Give values of k from 1 to 3."


def pilot(deviations: dict[int, float]) -> dict[int, list[list[float]]]:
    return {k: [[2 - d, 2, 2 + d]] for k, d in deviations.items()}


def test_counts_go_with_the_deviations() -> None:
    # Own variance d^2 with two degrees of freedom, the common one with four.
    deviations = {1: 0.4, 2: 0.2, 4: 0.1}
    common = sum(k * d * d for k, d in deviations.items()) / 3
    shrunk = np.sqrt([(2 * d * d + 4 * common / k) / 6 for k, d in deviations.items()])
    counts = allocate(pilot(deviations), 30, 60)
    assert sum(counts.values()) in (58, 59, 60)
    assert [*counts.values()] == pytest.approx(60 * shrunk / shrunk.sum(), abs=1)


def test_no_other_counts_of_that_budget_have_less_variance() -> None:
    deviations = {1: 0.4, 2: 0.2, 4: 0.1}
    common = sum(k * d * d for k, d in deviations.items()) / 3
    shrunk = np.array([(2 * d * d + 4 * common / k) / 6 for k, d in deviations.items()])
    counts = allocate(pilot(deviations), 30, 30)
    total = sum(counts.values())
    least = min(
        sum(shrunk / np.array([a, b, total - a - b]))
        for a, b in product(range(3, total), repeat=2)
        if total - a - b >= 3
    )
    assert sum(shrunk / np.array([*counts.values()])) == pytest.approx(least, rel=0.03)


def test_bounds_of_the_counts() -> None:
    # All there are of 1 and 4 of 4; what they cannot take goes to k = 2, which has six.
    assert allocate(pilot({1: 0.4, 2: 0.2}) | {4: [[2.0]]}, 4, 11) == {1: 4, 2: 6, 4: 1}
    assert allocate(pilot({1: 0.4, 2: 0.2, 3: 0.1}), 10, 1) == {1: 3, 2: 3, 3: 3}
    assert allocate(pilot({1: 0.0, 2: 0.0}), 30, 20) == {1: 10, 2: 10}


def test_the_method_that_spreads_most_decides() -> None:
    quiet, loud = [2.0, 2.0, 2.0], [1.0, 2.0, 3.0]
    counts = allocate({1: [quiet, quiet], 2: [quiet, loud], 3: [quiet, quiet]}, 30, 30)
    assert counts[2] > counts[1] > counts[3]
