"""EMR-Merging."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from evomerge.errors import RunError
from evomerge.keys import Key
from evomerge.types import digest_tensor
from evomerge.variation.merge.emr import emr, pack_mask, unpack_mask


def stack_of(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=Key(seed).torch())


def test_by_hand() -> None:
    stack = torch.tensor([[4.0, -1.0, 2.0, 0.0], [-2.0, -3.0, -2.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    unified = emr(stack)
    # Sums 3, -3, 0, 0: signs +, -, +, +; the largest of that sign 4, 3, 2, none.
    assert unified.vector.tolist() == [4.0, -3.0, 2.0, 0.0]
    assert unified.masks.tolist() == [
        [True, True, True, False],
        [False, True, False, False],
        [True, False, False, False],
    ]
    assert_close(unified.scales, torch.tensor([7 / 9, 7 / 3, 2 / 4], dtype=torch.float64))
    assert_close(unified.view(0), torch.tensor([28 / 9, -21 / 9, 14 / 9, 0.0]))
    assert_close(unified.view(1), torch.tensor([0.0, -7.0, 0.0, 0.0]))
    assert_close(unified.view(2), torch.tensor([2.0, 0.0, 0.0, 0.0]))


def test_one_task_and_equal_tasks_are_their_own_views() -> None:
    row = stack_of(1, 500)
    for n in (1, 3):
        unified = emr(row.repeat(n, 1))
        assert torch.equal(unified.vector, row[0])
        assert unified.scales.tolist() == [1.0] * n
        assert torch.equal(unified.view(n - 1), row[0])


def test_tasks_that_share_no_entry_are_kept_exactly() -> None:
    stack = stack_of(3, 300) * torch.eye(3).repeat_interleave(100, dim=1)
    unified = emr(stack)
    for i, row in enumerate(stack):
        assert_close(unified.view(i), row)


def test_a_view_has_its_own_task_s_signs_and_mean_magnitude() -> None:
    stack = stack_of(5, 1000)
    unified = emr(stack)
    for i, row in enumerate(stack):
        view = unified.view(i)
        assert (view * row >= 0).all()
        assert_close(view.abs().sum(), row.abs().sum())
    assert unified.vector.dtype == unified.view(0).dtype == torch.float32
    assert unified.masks.dtype == torch.bool
    assert unified.scales.dtype == torch.float64


def test_tasks_that_take_nothing_have_a_view_of_zeros() -> None:
    stack = torch.tensor([[0.0, 0.0], [3.0, -3.0], [-1.0, 1.0]])
    unified = emr(stack)
    assert unified.scales.tolist() == [0.0, 1.0, 0.0]
    assert unified.view(0).tolist() == [0.0, 0.0]
    assert unified.view(2).tolist() == [0.0, 0.0]
    zeros = emr(torch.zeros(2, 3))
    assert zeros.vector.tolist() == [0.0] * 3
    assert torch.isfinite(zeros.scales).all()


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0]])
def test_the_order_of_the_tasks_changes_only_their_order(order: list[int]) -> None:
    # Over more entries than one block; the first three are a vote that float32 rounding would turn.
    stack = stack_of(3, 140_000)
    stack[:, 0] = torch.tensor([0.1, 0.2, -0.3])
    unified, permuted = emr(stack), emr(stack[order])
    assert unified.vector[0] == torch.tensor(-0.3)
    assert torch.equal(permuted.vector, unified.vector)
    assert torch.equal(permuted.masks, unified.masks[order])
    assert torch.equal(permuted.scales, unified.scales[order])


def test_threads_and_precision_and_inputs() -> None:
    stack, threads = stack_of(4, 140_000).bfloat16(), torch.get_num_threads()
    before, digests = digest_tensor(stack), set()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for given in (stack, stack.float()):
                unified = emr(given)
                digests.add(
                    (digest_tensor(unified.vector), digest_tensor(unified.masks), digest_tensor(unified.scales))
                )
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1
    assert digest_tensor(stack) == before


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 1000])
def test_masks_survive_packing(length: int) -> None:
    mask = torch.rand(length, generator=Key(length).torch()) < 0.5
    packed = pack_mask(mask)
    assert len(packed) == (length + 7) // 8
    assert torch.equal(unpack_mask(packed, length), mask)


def test_the_layout_of_a_packed_mask_is_fixed() -> None:
    assert pack_mask(torch.tensor([True, False, False, False, False, False, False, True, True])) == b"\x81\x80"


def test_bad_input_is_named() -> None:
    with pytest.raises(RunError, match=r"A stack of shape \(3,\) cannot be merged"):
        emr(torch.zeros(3))
    with pytest.raises(RunError, match="A mask of 9 entries has 2 bytes, not 1"):
        unpack_mask(b"\x81", 9)
