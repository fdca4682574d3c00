"""Two ways to thin task vectors: keep the largest entries (TIES), or drop at random and rescale (DARE)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from torch import Tensor

from evomerge.keys import Key
from evomerge.types import Segment, digest_tensor
from evomerge.variation.segments import slices

Density = Annotated[float, Gt(0), Le(1)]
Scope = Literal["tensor", "global"]


def trim(stack: Tensor, segments: Sequence[Segment], density: float, scope: Scope, least: int) -> Tensor:
    """Zero all but the largest entries by magnitude of every row, in each tensor or in the row as a whole.

    ``max(least, int(density * size))`` entries are kept. Entries that tie with the smallest kept magnitude
    are all kept, so that the result depends on values only, never on positions or on a sorting algorithm.

    Shapes: stack and result ``[n, d]``.

    Raises:
        RunError: the segments do not tile the genome.
    """
    length = stack.shape[1]
    parts = slices(segments, length) if scope == "tensor" else [slice(0, length)]
    return torch.cat([_largest(stack[:, part], density, least) for part in parts], dim=1)


def _largest(block: Tensor, density: float, least: int) -> Tensor:
    size = block.shape[1]
    keep = max(least, int(density * size))
    if keep >= size:
        return block
    if keep == 0:
        return torch.zeros_like(block)
    magnitudes = block.abs()
    # numpy's partition finds the threshold several times faster than torch.kthvalue or torch.topk on a CPU.
    ordered = np.partition(magnitudes.cpu().numpy(), size - keep, axis=1)
    threshold = torch.from_numpy(ordered[:, size - keep : size - keep + 1]).to(block.device)
    return torch.where(magnitudes >= threshold, block, 0.0)


def drop_and_rescale(stack: Tensor, density: float, key: Key) -> Tensor:
    """Keep each entry with probability ``density`` and divide what is kept by ``density``: E[result] = stack.

    A row's mask is drawn from the key at the row's own digest, so that it stays with the parent when the
    parents are permuted; equal rows still get independent masks.

    Shapes: stack and result ``[n, d]``.
    """
    seen: Counter[str] = Counter()
    rows = []
    for row in stack:
        identity = digest_tensor(row)
        generator = key.at("drop", identity, seen[identity]).torch()
        seen[identity] += 1
        kept = torch.rand(len(row), generator=generator) < density
        rows.append(torch.where(kept.to(row.device), row / density, 0.0))
    return torch.stack(rows)
