"""PCB-Merging."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch.testing import assert_close

from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.merge import MERGES


def pcb(
    stack: torch.Tensor,
    weights: list[float] | None = None,
    segments: Sequence[Segment] = (),
    **params: object,
) -> torch.Tensor:
    shares = torch.tensor(weights or [1.0] * len(stack))
    return MERGES["pcb"](stack, shares, segments or [Segment("all", 0, (stack.shape[1],))], Key(0), **params)


def test_two_by_two() -> None:
    # Squares [4, 0] and [1, 1] -> norms [1, 0] and [0, 0]; intra = softmax(2 norm) = [e^2, 1] / (e^2 + 1), [1/2, 1/2].
    # Products with each other [2, 0] -> norm [1, 0], softmax p = [e, 1] / (e + 1) for both parents.
    # inter of the first = 2 p (its own norm is [1, 0] too), of the second = p + [1/2, 1/2].
    stack = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    p, q = math.e / (math.e + 1), math.e**2 / (math.e**2 + 1)
    first = [q * 2 * p, (1 - q) * 2 * (1 - p)]
    second = [0.5 * (p + 0.5), 0.5 * (1 - p + 0.5)]
    expected = [
        (first[0] * 2 + second[0] * 1) / (first[0] + second[0]),
        (first[1] * 0 + second[1] * 1) / (first[1] + second[1]),
    ]
    assert_close(pcb(stack, density=1.0), torch.tensor(expected))
    assert_close(pcb(stack, density=1.0, lam=0.5), torch.tensor(expected) / 2)
    weighted = [
        (3 * first[0] * 2 + second[0] * 1) / (3 * first[0] + second[0]),
        (3 * first[1] * 0 + second[1] * 1) / (3 * first[1] + second[1]),
    ]
    assert_close(pcb(stack, [3.0, 1.0], density=1.0), torch.tensor(weighted))
    # Each parent keeps its better half: both the first entry.
    assert_close(pcb(stack, density=0.5), torch.tensor([expected[0], 0.0]))


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_equal_parents_give_their_largest_entries(density: float) -> None:
    row = torch.randn(1, 100, generator=Key(1).torch())
    kept = row.abs() >= row.abs().sort(descending=True).values[0, int(100 * density) - 1]
    assert_close(pcb(row.repeat(3, 1), [0.2, 0.3, 0.5], density=density), torch.where(kept, row, 0.0)[0])


def test_an_entry_that_the_others_contradict_counts_for_less() -> None:
    # Three parents, the same magnitudes everywhere; the first is contradicted in entry 0 only.
    stack = torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    child = pcb(stack, density=1.0)
    assert_close(child[1:], torch.ones(2))
    assert child[0] > (-1 + 1 + 1) / 3


def test_results_lie_between_the_parents() -> None:
    stack = torch.randn(4, 200, generator=Key(2).torch())
    child = pcb(stack, [0.1, 0.2, 0.3, 0.4], density=1.0)
    assert ((child >= stack.amin(dim=0) - 1e-6) & (child <= stack.amax(dim=0) + 1e-6)).all()


def test_the_scale_of_all_parents_comes_out_again() -> None:
    stack = torch.randn(3, 200, generator=Key(3).torch())
    assert_close(pcb(1e-4 * stack, density=0.3), 1e-4 * pcb(stack, density=0.3))


def test_the_scope_decides_what_competes() -> None:
    stack = torch.tensor([[1.0, 2.0, 10.0, 20.0]])
    segments = (Segment("small", 0, (2,)), Segment("large", 2, (2,)))
    assert pcb(stack, segments=segments, density=0.5).tolist() == [0, 2, 0, 20]
    assert pcb(stack, segments=segments, density=0.5, scope="global").tolist() == [0, 0, 10, 20]


def test_zeros_and_constants_and_single_entries() -> None:
    assert pcb(torch.zeros(3, 5)).tolist() == [0.0] * 5
    assert_close(pcb(torch.full((2, 4), 7.0)), torch.full((4,), 7.0))  # all tie, all are kept
    segments = [Segment(f"t{i}", i, (1,)) for i in range(3)]
    stack = torch.tensor([[1.0, -2.0, 0.0], [3.0, -4.0, 0.0]])
    assert_close(pcb(stack, segments=segments, density=0.01), torch.tensor([2.0, -3.0, 0.0]))


def test_a_large_tensor_does_not_underflow() -> None:
    stack = torch.randn(2, 300_000, generator=Key(4).torch()) * 1e-3
    child = pcb(stack, density=1.0)
    assert torch.isfinite(child).all()
    assert (child != 0).all()
