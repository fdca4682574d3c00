"""The kernels compiled by numba, for CPUs: each reads a block of all parents, works in cache, and writes once.

numba compiles without `fastmath`, so every operation is rounded as IEEE 754 and torch do. The first use of a
function compiles it (seconds); the result is cached on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

import evomerge.variation.merge.kernels.loops as loops
from evomerge.variation.merge.kernels.base import STEPS, Ballot, Drop, cut

T = TypeVar("T")


class Compiled:
    """Kernels in numba; see ``Kernels``."""

    def weighted_sum(self, stack: Tensor, weights: np.ndarray, drop: Drop | None = None) -> Tensor:
        """Return ``sum_i weights_i x_i``, ``[d]``."""
        rows, scales = stack.numpy(), weights.astype(np.float32)
        merged = np.empty(rows.shape[1], dtype=np.float32)
        random = _random(drop, len(rows))

        def work(block: tuple[int, int, int]) -> None:
            _, start, stop = block
            loops.weighted_sum(rows, scales, start, stop, *random, merged)

        _spread(work, cut([slice(0, rows.shape[1])]))
        return torch.from_numpy(merged)

    def thresholds(self, stack: Tensor, parts: Sequence[slice], keep: Sequence[int]) -> np.ndarray:
        """Return the ``keep``-th largest magnitude of each row in each part, float32 ``[n, parts]``."""
        bits = stack.numpy().view(np.uint32)
        found = np.zeros((len(bits), len(parts)), dtype=np.float32)

        def work(item: tuple[int, int]) -> None:
            row, number = item
            part, count = parts[number], keep[number]
            if count <= 0:
                found[row, number] = np.inf
            elif count < part.stop - part.start:
                selected = loops.kth_magnitude(bits[row], part.start, part.stop, count)
                found[row, number] = np.uint32(selected).view(np.float32)

        _spread(work, [(row, number) for number in range(len(parts)) for row in range(len(bits))])
        return found

    def elect(
        self, stack: Tensor, parts: Sequence[slice], thresholds: np.ndarray, ballot: Ballot, drop: Drop | None = None
    ) -> Tensor:
        """Vote on every entry and merge who agrees, ``[d]``."""
        rows = stack.numpy()
        merged = np.empty(rows.shape[1], dtype=np.float32)
        random = _random(drop, len(rows))
        scales, shares = ballot.scales.astype(np.float32), ballot.shares.astype(np.float32)
        rules = (ballot.votes, scales, shares, np.float32(ballot.least), ballot.dropped_count)

        def work(block: tuple[int, int, int]) -> None:
            number, start, stop = block
            limits = np.ascontiguousarray(thresholds[:, number])
            loops.elect(rows, start, stop, limits, *random, *rules, merged)

        _spread(work, cut(parts))
        return torch.from_numpy(merged)

    def trim(self, stack: Tensor, parts: Sequence[slice], thresholds: np.ndarray) -> Tensor:
        """Return the stack ``[n, d]`` with the entries below their part's threshold set to 0."""
        rows = stack.numpy()
        trimmed = np.empty_like(rows)

        def work(block: tuple[int, int, int]) -> None:
            number, start, stop = block
            loops.trim(rows, start, stop, np.ascontiguousarray(thresholds[:, number]), trimmed)

        _spread(work, cut(parts))
        return torch.from_numpy(trimmed)


def _random(drop: Drop | None, rows: int) -> tuple[np.ndarray, int, np.float32]:
    if drop is None:
        return np.zeros(rows, dtype=np.uint64), STEPS, np.float32(1)
    return drop.seeds, drop.limit, np.float32(drop.density)


def _spread(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do the work on every item, on as many threads as torch may use; the loops do not hold Python's lock."""
    threads = torch.get_num_threads()
    listed = list(items)
    if threads == 1 or len(listed) == 1:
        for item in listed:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, listed):
            pass


KERNELS = Compiled()
