"""The slices of a genome that belong to one tensor each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evomerge.errors import RunError
from evomerge.types import Segment


def by_segment(stack: Tensor, segments: Sequence[Segment], merge: Callable[[Tensor, Segment], Tensor]) -> Tensor:
    """Return ``[d]``: what ``merge`` makes of each tensor's part ``[n, m]`` of the stack ``[n, d]``, in its place.

    Only one tensor's temporaries are alive at a time.

    Raises:
        RunError: the segments do not tile the genome.
    """
    merged = torch.empty(stack.shape[1], device=stack.device)
    slices(segments, stack.shape[1])
    for segment in segments:
        if segment.stop == segment.start:
            continue
        merged[segment.start : segment.stop] = merge(stack[:, segment.start : segment.stop], segment).flatten()
    return merged


def slices(segments: Sequence[Segment], length: int) -> list[slice]:
    """Return the slice of each segment, in the genome's order.

    Raises:
        RunError: the segments leave a gap, overlap, or do not end at ``length``.
    """
    ordered = sorted(segments, key=lambda segment: (segment.start, segment.stop))
    end = 0
    for segment in ordered:
        if segment.start != end:
            raise _misfit(f"segment {segment.name!r} starts at {segment.start}, not at {end}")
        end = segment.stop
    if end != length:
        raise _misfit(f"{len(ordered)} segments end at {end}, but the genome has {length} entries")
    return [slice(segment.start, segment.stop) for segment in ordered]


def _misfit(cause: str) -> RunError:
    return RunError(cause, where="segments", fix="Use the `segments` of the genome space that encoded the stack.")
