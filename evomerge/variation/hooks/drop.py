"""Drop the child's smallest entries."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.hooks import HOOKS, HookSpace
from evomerge.variation.merge.sparsify import Density, trim
from evomerge.variation.segments import by_segment


@HOOKS.register("drop_small", paper="Han et al. 2015, Learning both weights and connections (arXiv:1506.02626)")
def drop_small(
    child: Tensor,
    parents: Tensor,  # noqa: ARG001
    space: HookSpace,
    key: Key,  # noqa: ARG001
    *,
    density: Density = 0.5,
    rescale: bool = False,
) -> Tensor:
    """Keep the ``density`` of each tensor's entries that are largest by magnitude, at least one; the rest become 0.

    Entries that tie with the smallest kept one are all kept. With ``rescale``, what is kept is multiplied so that
    each tensor keeps its norm.

    Differs from the paper: no threshold and no training after. It acts on the tensors of the genome: on cores in
    the space ``subspace``, where small entries are not small entries of delta-W.

    Shapes: child ``[d]``, parents ``[n, d]`` (not used) -> ``[d]``, float32.

    Raises:
        RunError: the segments do not tile the genome.
    """
    child = child.float()
    kept = trim(child[None], space.segments, density, "tensor", least=1)
    if not rescale:
        return kept[0]
    return by_segment(torch.cat([child[None], kept]), space.segments, _rescaled)


def _rescaled(pair: Tensor, segment: Segment) -> Tensor:  # noqa: ARG001
    before, after = (_sum_of_squares(row) for row in pair)
    return pair[1] * math.sqrt(before / after) if after else pair[1]


def _sum_of_squares(values: Tensor) -> float:
    # numpy in float64: torch splits such a reduction over threads; bytes may not depend on their number.
    return float(np.square(values.cpu().numpy(), dtype=np.float64).sum())
