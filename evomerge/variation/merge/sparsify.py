"""Two ways to thin task vectors: keep the largest entries (TIES), or drop at random and rescale (DARE)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import xxhash
from annotated_types import Gt, Le
from torch import Tensor

from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.merge.kernels import STEPS, Drop, kernels
from evomerge.variation.segments import slices

Density = Annotated[float, Gt(0), Le(1)]
Scope = Literal["tensor", "global"]


def trim(stack: Tensor, segments: Sequence[Segment], density: float, scope: Scope, least: int) -> Tensor:
    """Zero all but the largest entries by magnitude of every row (see ``trim_thresholds``).

    Shapes: stack and result ``[n, d]``.

    Raises:
        RunError: the segments do not tile the genome.
    """
    parents = stack.float().contiguous()
    parts, thresholds = trim_thresholds(parents, segments, density, scope, least)
    return kernels(parents).trim(parents, parts, thresholds)


def trim_thresholds(
    stack: Tensor, segments: Sequence[Segment], density: float, scope: Scope, least: int
) -> tuple[list[slice], np.ndarray]:
    """Return the parts in which entries compete, and the smallest magnitude kept in each, ``[n, parts]``.

    ``max(least, int(density * size))`` entries are kept, in each tensor or (scope ``global``) in the row as a
    whole. Entries that tie with the smallest kept magnitude are all kept, so that the result depends on values
    only, never on positions or on a sorting algorithm.

    Args:
        stack: float32 ``[n, d]``, contiguous.

    Raises:
        RunError: the segments do not tile the genome.
    """
    parts = slices(segments, stack.shape[1]) if scope == "tensor" else [slice(0, stack.shape[1])]
    keep = [max(least, int(density * (part.stop - part.start))) for part in parts]
    return parts, kernels(stack).thresholds(stack, parts, keep)


def random_drop(stack: Tensor, density: float, key: Key) -> Drop:
    """Return independent drops for the rows of a stack ``[n, d]``: each entry is kept with probability ``density``.

    The density is rounded to a multiple of 2^-16, and what is kept is divided by the rounded one, so that the
    expectation is exact. A row's bits come from the key at the row's own content, so that they stay with the
    parent when the parents are permuted; equal rows still get independent bits.
    """
    seen: Counter[str] = Counter()
    seeds = []
    for row in stack:
        identity = xxhash.xxh3_128_hexdigest(row.detach().cpu().numpy())
        seeds.append(key.at("drop", identity, seen[identity]).integer())
        seen[identity] += 1
    return Drop(np.array(seeds, dtype=np.uint64), max(1, round(density * STEPS)))
