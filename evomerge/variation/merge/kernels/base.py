"""What both implementations of the kernels share: how parents vote, how entries are dropped, how work is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

# Columns worked on at a time: a block's temporaries stay in the processor's cache. A multiple of 4 (see `Drop`).
BLOCK = 1 << 17
# Whether an entry is dropped takes 16 random bits, so a density is a multiple of 2^-16.
STEPS = 1 << 16


@dataclass(frozen=True)
class Ballot:
    """How parents vote on the sign of an entry, and how those who agree are averaged.

    The elected sign is that of ``sum_i votes_i x_i`` (+1 for zero). With ``agree_i = [sign(votes_i x_i) = elected]``
    the merged entry is ``sum_i agree_i scales_i x_i / sum_i agree_i shares_i``; where that divisor is not above
    ``least`` in magnitude it is the sum alone.

    Attributes:
        votes, scales, shares: ``[n]``, float64.
        least: divisors up to this magnitude are not divided by.
        dropped_count: an entry dropped at random counts in the divisor by the sign that it had.
    """

    votes: np.ndarray
    scales: np.ndarray
    shares: np.ndarray
    least: float = 0.0
    dropped_count: bool = False


@dataclass(frozen=True, eq=False)
class Drop:
    """Independent random drops: an entry of row i is kept where its 16 random bits are below ``limit``.

    Column j takes bits ``16 (j mod 4)`` to ``16 (j mod 4) + 15`` of number ``j // 4`` of the row's SplitMix64
    stream (Steele, Lea & Flood 2014, https://doi.org/10.1145/2660193.2660195), which can be entered anywhere.

    Attributes:
        seeds: one stream for each row, uint64 ``[n]``.
        limit: ``density * 2^16``, at least 1.
    """

    seeds: np.ndarray
    limit: int

    @property
    def density(self) -> float:
        """Return the probability that an entry is kept, exactly."""
        return self.limit / STEPS

    def words(self, start: int, stop: int) -> np.ndarray:
        """Return the random bits of columns ``start`` (a multiple of 4) to ``stop`` as uint16 ``[n, stop - start]``."""
        places = np.arange(start // 4 + 1, -(-stop // 4) + 1, dtype=np.uint64)
        z = self.seeds[:, None] + places * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))).astype("<u8", copy=False)
        words: np.ndarray = z.view("<u2")[:, : stop - start]
        return words


class Kernels(Protocol):
    """What both implementations offer. A stack is float32 ``[n, d]``, contiguous; parts are slices of its columns."""

    def weighted_sum(self, stack: Tensor, weights: np.ndarray, drop: Drop | None = None) -> Tensor:
        """Return ``sum_i weights_i x_i``, added in the order of the rows, ``[d]``; with ``drop``, of what it keeps."""
        ...

    def thresholds(self, stack: Tensor, parts: Sequence[slice], keep: Sequence[int]) -> np.ndarray:
        """Return the ``keep``-th largest magnitude of each row in each part, float32 ``[n, parts]``.

        It is 0 where everything is kept, and infinite where nothing is.
        """
        ...

    def elect(
        self, stack: Tensor, parts: Sequence[slice], thresholds: np.ndarray, ballot: Ballot, drop: Drop | None = None
    ) -> Tensor:
        """Vote on every entry and merge who agrees, ``[d]``; entries below their part's threshold count as 0."""
        ...

    def trim(self, stack: Tensor, parts: Sequence[slice], thresholds: np.ndarray) -> Tensor:
        """Return the stack ``[n, d]`` with the entries below their part's threshold set to 0."""
        ...


def cut(parts: Sequence[slice]) -> list[tuple[int, int, int]]:
    """Return ``(part, start, stop)`` of blocks of at most ``BLOCK`` columns that each lie in one part."""
    return [
        (number, start, min(start + BLOCK, part.stop))
        for number, part in enumerate(parts)
        for start in range(part.start, part.stop, BLOCK)
    ]
