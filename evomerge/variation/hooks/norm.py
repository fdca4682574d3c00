"""Give the child back the size that a merge took from it."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Gt
from pydantic import FiniteFloat
from torch import Tensor

from evomerge.keys import Key
from evomerge.spaces.base import one_thread
from evomerge.variation.hooks import HOOKS, HookSpace


@HOOKS.register("match_norm", paper="none: evomerge 2026, against the shrinking of averaged and trimmed children")
@one_thread()
def match_norm(
    child: Tensor,
    parents: Tensor,
    space: HookSpace,
    key: Key,  # noqa: ARG001
    *,
    factor: Annotated[FiniteFloat, Gt(0)] = 1.0,
) -> Tensor:
    """Scale the child so that its norm is ``factor`` times the mean norm of its parents.

    The norm is Frobenius', of the whole delta-W and not of the coordinates: one factor for all tensors, so that
    nothing but the size changes. A dense merge that streams does this tensor by tensor, for it sees one at a time.
    A child of zeros stays one.

    Parents count equally, whatever their weights. An average of unlike parents is shorter than each of them (by
    ``1/sqrt(n)`` if they are orthogonal); the hook makes it as long, which is what summing with weights
    ``1/sqrt(n)`` does.

    Shapes: child ``[d]``, parents ``[n, d]`` -> ``[d]``, float32.
    """
    child = child.float()
    norm = space.norm(child)
    if norm == 0:
        return child.clone()
    # fsum: the order of the parents must not reach the last bit.
    target = math.fsum(space.norm(parent) for parent in parents.float()) / len(parents)
    return space.scale(child, factor * target / norm)
