"""The greedy soup, on landscapes with a known optimum."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from evomerge.errors import RunError
from evomerge.keys import Key
from evomerge.variation.merge.soup import greedy_soup

TARGET = torch.tensor([1.0, 2.0])


def closeness(genome: torch.Tensor) -> float:
    return -float((genome - TARGET).square().sum())


def test_ingredients_that_help_are_averaged_and_a_bad_one_is_left_out() -> None:
    # Alone: -2, -1, -1, -100. Rows 1 and 2 (a tie: the lower row first) meet at the target; no other can help.
    stack = torch.tensor([[2.0, 3.0], [0.0, 2.0], [2.0, 2.0], [11.0, 2.0]])
    soup = greedy_soup(stack, closeness)
    assert soup.tried == (1, 2, 0, 3)
    assert soup.ingredients == (1, 2)
    assert soup.genome.tolist() == [1.0, 2.0]
    assert_close(torch.tensor(soup.scores), torch.tensor([-1.0, 0.0, -2 / 9, -100 / 9]))


def test_a_soup_that_is_no_worse_is_kept() -> None:
    soup = greedy_soup(torch.tensor([[1.0], [5.0]]), lambda genome: 0.0)
    assert soup.ingredients == (0, 1)
    assert soup.genome.tolist() == [3.0]


def test_a_given_order_is_kept_and_may_leave_rows_out() -> None:
    stack = torch.tensor([[2.0, 3.0], [0.0, 2.0], [2.0, 2.0], [11.0, 2.0]])
    soup = greedy_soup(stack, closeness, [3, 0, 2])
    assert soup.tried == (3, 0, 2)
    assert soup.ingredients == (3, 0, 2)  # each brings the soup nearer: 100, 30.5, 16 + 1/9
    assert_close(soup.genome, torch.tensor([5.0, 7 / 3]))


@pytest.mark.parametrize("failure", [None, float("nan"), float("inf"), float("-inf")])
def test_failures_are_skipped(failure: float | None) -> None:
    stack = torch.tensor([[9.0, 9.0], [0.0, 2.0], [2.0, 2.0]])

    def score(genome: torch.Tensor) -> float | None:
        return failure if genome[0] > 8 else closeness(genome)

    by_score = greedy_soup(stack, score)
    assert by_score.tried == (1, 2, 0)
    assert by_score.ingredients == (1, 2)
    assert by_score.scores == (-1.0, 0.0, None)
    given = greedy_soup(stack, score, [0, 1, 2])
    assert given.ingredients == (1, 2)
    assert given.scores == (None, -1.0, 0.0)


def test_a_soup_that_fails_is_not_kept() -> None:
    # The second is fine alone but not in the soup.
    soup = greedy_soup(torch.tensor([[1.0], [3.0]]), lambda genome: None if genome[0] == 2 else 4.0 - float(genome[0]))
    assert soup.ingredients == (0,)
    assert soup.scores == (3.0, None)


def test_the_soup_never_scores_below_its_best_ingredient() -> None:
    for seed in range(20):
        stack = torch.randn(6, 2, generator=Key(seed).torch()) + TARGET
        soup = greedy_soup(stack, closeness)
        assert closeness(soup.genome) >= max(closeness(row) for row in stack)
        assert_close(soup.genome, stack[list(soup.ingredients)].mean(dim=0))


def test_how_often_the_score_is_asked_for() -> None:
    seen: list[list[float]] = []

    def score(genome: torch.Tensor) -> float:
        assert genome.dtype == torch.float32
        seen.append(genome.tolist())
        return -abs(float(genome[0]))

    stack = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.bfloat16)
    greedy_soup(stack, score)
    assert len(seen) == 5
    assert stack.tolist() == [[0.0], [1.0], [2.0]]


def test_bad_orders_and_pools_that_cannot_be_scored_are_named() -> None:
    stack = torch.zeros(3, 2)
    for order in ([0, 0], [3], [-1]):
        with pytest.raises(RunError, match="is not one of distinct rows of 3 genomes") as caught:
            greedy_soup(stack, closeness, order)
        assert str(order) in str(caught.value)
    with pytest.raises(RunError, match="None of the 3 genomes of a soup could be scored"):
        greedy_soup(stack, lambda genome: None)
