"""The kernels in plain torch, for any device: the reference that ``compiled`` equals bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.variation.merge.kernels.base import Ballot, Drop, cut


class Portable:
    """Kernels in torch; see ``Kernels``."""

    def weighted_sum(self, stack: Tensor, weights: np.ndarray, drop: Drop | None = None) -> Tensor:
        """Return ``sum_i weights_i x_i``, ``[d]``."""
        scales = [float(weight) for weight in weights.astype(np.float32)]
        merged = torch.empty(stack.shape[1], device=stack.device)
        for _, start, stop in cut([slice(0, stack.shape[1])]):
            rows = _thinned(stack[:, start:stop], start, drop)
            total = rows[0] * scales[0]
            for row, scale in zip(rows[1:], scales[1:], strict=True):
                total = total + row * scale
            merged[start:stop] = total
        return merged

    def thresholds(self, stack: Tensor, parts: Sequence[slice], keep: Sequence[int]) -> np.ndarray:
        """Return the ``keep``-th largest magnitude of each row in each part, float32 ``[n, parts]``."""
        found = np.zeros((stack.shape[0], len(parts)), dtype=np.float32)
        for number, (part, count) in enumerate(zip(parts, keep, strict=True)):
            size = part.stop - part.start
            if count <= 0:
                found[:, number] = np.inf
            elif count < size:
                # A sort: torch's selections are limited in size (topk) or slow on GPUs (kthvalue).
                ordered = stack[:, part].abs().sort(dim=1).values
                found[:, number] = ordered[:, size - count].cpu().numpy()
        return found

    def elect(
        self, stack: Tensor, parts: Sequence[slice], thresholds: np.ndarray, ballot: Ballot, drop: Drop | None = None
    ) -> Tensor:
        """Vote on every entry and merge who agrees, ``[d]``."""
        merged = torch.empty(stack.shape[1], device=stack.device)
        for number, start, stop in cut(parts):
            carriers = _trimmed(stack[:, start:stop], thresholds[:, number])
            rows = _thinned(carriers, start, drop)
            vote = torch.zeros(stop - start, dtype=torch.float64, device=stack.device)
            for row, weight in zip(rows, ballot.votes, strict=True):
                vote = vote + row.double() * float(weight)
            elected = torch.where(vote >= 0, 1.0, -1.0).float()
            counted = carriers if ballot.dropped_count else rows
            merged[start:stop] = _average(rows, counted, elected, ballot)
        return merged

    def trim(self, stack: Tensor, parts: Sequence[slice], thresholds: np.ndarray) -> Tensor:
        """Return the stack ``[n, d]`` with the entries below their part's threshold set to 0."""
        trimmed = torch.empty_like(stack)
        for number, part in enumerate(parts):
            trimmed[:, part] = _trimmed(stack[:, part], thresholds[:, number])
        return trimmed


def _trimmed(block: Tensor, thresholds: np.ndarray) -> Tensor:
    limits = torch.from_numpy(thresholds).to(block.device)[:, None]
    return torch.where(block.abs() >= limits, block, 0.0)


def _thinned(block: Tensor, start: int, drop: Drop | None) -> Tensor:
    if drop is None:
        return block
    words = torch.from_numpy(drop.words(start, start + block.shape[1]).astype(np.int32)).to(block.device)
    return torch.where(words < drop.limit, block / drop.density, 0.0)


def _average(rows: Tensor, counted: Tensor, elected: Tensor, ballot: Ballot) -> Tensor:
    total, divisor = torch.zeros_like(elected), torch.zeros_like(elected)
    for row, carrier, vote, scale, share in zip(
        rows, counted, ballot.votes, ballot.scales.astype(np.float32), ballot.shares.astype(np.float32), strict=True
    ):
        side = elected if vote >= 0 else -elected
        total = total + torch.where(row * side > 0, row * float(scale), 0.0)
        divisor = divisor + torch.where(carrier * side > 0, float(share), 0.0)
    return torch.where(divisor.abs() > ballot.least, total / divisor, total)


KERNELS = Portable()
