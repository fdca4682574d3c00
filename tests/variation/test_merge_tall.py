"""Consensus merging with TALL masks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.merge import MERGES


def tall(stack: torch.Tensor, weights: list[float] | None = None, **params: float) -> torch.Tensor:
    shares = torch.tensor(weights or [1.0] * len(stack))
    return MERGES["tall_consensus"](stack, shares, [Segment("all", 0, (stack.shape[1],))], Key(0), **params)


# Sum: [6, 2, 5, 0]; distances |sum - x|: rows [3, 3, 1, 2], [4, -, 5, 2] and so on, at lam = 1:
#   entry 0: |3| >= 3, |2| < 4, |1| < 5              one user   (selfish)
#   entry 1: |5| >= 3, |-2| < 4, |-1| < 3            one user   (selfish)
#   entry 2: |2| < 3, |2| < 3, |1| < 4               no user    (catastrophic)
#   entry 3: |2| >= 2, |-2| >= 2, 0 >= 0             all, of a sum of zero
STACK = torch.tensor([[3.0, 5.0, 2.0, 2.0], [2.0, -2.0, 2.0, -2.0], [1.0, -1.0, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"lam": 1.0, "least": 1}, [2.0, 2 / 3, 0.0, 0.0]),
        ({"lam": 1.0, "least": 2}, [0.0, 0.0, 0.0, 0.0]),
        # lam = 1/2: entry 0: 3, 2 and not 1 (< 5/2); entry 1: 5, -2 (2 >= 2), not -1 (< 3/2); entry 2: all but 1.
        ({"lam": 0.5, "least": 2}, [2.0, 2 / 3, 5 / 3, 0.0]),
        ({"lam": 0.5, "least": 3}, [0.0, 0.0, 0.0, 0.0]),
        ({"lam": 0.1, "least": 3, "scale": 3.0}, [6.0, 2.0, 5.0, 0.0]),
    ],
)
def test_three_by_four(params: dict[str, float], expected: list[float]) -> None:
    assert_close(tall(STACK, None, **params), torch.tensor(expected))


def test_the_mask_is_against_the_weighted_sum() -> None:
    # Shares 3/4 and 1/4: the multi-task vector is 2 (3 - 1/4) = 5.5; users: 4 >= 1.5, |-1| < 6.5.
    stack = torch.tensor([[4.0], [-1.0]])
    assert tall(stack, [3.0, 1.0], lam=1.0, least=1).tolist() == [2.75]
    assert tall(stack, [3.0, 1.0], lam=1.0, least=2).tolist() == [0.0]


def test_entries_of_one_parent_are_selfish() -> None:
    # Disjoint supports: each sum is its only parent's entry, at distance 0 from it, and of no use to the other.
    stack = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 2.0]])
    assert tall(stack, least=2).tolist() == [0.0, 0.0, 2.0]
    assert tall(stack, least=1).tolist() == [0.5, 1.5, 2.0]


@pytest.mark.parametrize(("n", "kept"), [(2, True), (3, True), (4, False)])
def test_many_equal_parents_are_too_far_from_their_sum(n: int, kept: bool) -> None:
    row = torch.randn(1, 50, generator=Key(1).torch())
    assert_close(tall(row.repeat(n, 1), lam=0.4), row[0] if kept else torch.zeros(50))


def test_one_parent_needs_only_itself() -> None:
    row = torch.randn(1, 50, generator=Key(2).torch())
    assert torch.equal(tall(row, least=5), row[0])


def test_what_is_kept_is_the_average_and_shrinks_with_lam_and_least() -> None:
    stack = torch.randn(5, 400, generator=Key(3).torch())
    weights = [0.1, 0.4, 0.2, 0.2, 0.1]
    average = torch.tensor(weights) @ stack
    kept = [tall(stack, weights, lam=lam, least=least) for lam, least in [(0.2, 1), (0.2, 2), (0.4, 2), (0.4, 3)]]
    for more, fewer in pairwise(kept):
        assert ((fewer != 0) <= (more != 0)).all()
        assert (fewer != 0).sum() < (more != 0).sum()
    for child in kept:
        assert_close(child[child != 0], average[child != 0])
