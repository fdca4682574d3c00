"""What a merge will read, hold and write, and how long it takes, before it is done."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.keys import Key
from evomerge.oneshot.adapters import experts_of
from evomerge.oneshot.method import Method, TensorSpace
from evomerge.oneshot.models import memory_of, method_of, slots_of
from evomerge.oneshot.request import AdapterRequest, Request
from evomerge.spaces import build_space
from evomerge.spaces.statistics import DENSE
from evomerge.types import Segment

_SAMPLE = 1 << 21  # entries of a genome that the measured sample has at most


@dataclass(frozen=True)
class Estimate:
    """What a merge takes.

    Attributes:
        experts: how many.
        entries: numbers in a genome.
        tensors: of which they are.
        read: bytes of the experts (and base) on disk.
        written: bytes of the result.
        memory: bytes held at once.
        seconds: of arithmetic, measured on a sample and scaled; ``None`` where the method depends on more than sizes.
    """

    experts: int
    entries: int
    tensors: int
    read: int
    written: int
    memory: int
    seconds: float | None


def estimate(request: Request) -> Estimate:
    """Return what a merge takes; its method is tried on random numbers of the experts' shapes."""
    if isinstance(request, AdapterRequest):
        return _adapters(request)
    slots = slots_of(request)
    models = [*request.models, *([request.base] if request.base else [])]
    read = sum(stored.nbytes for model in models for stored in model.tensors.values())
    segments = _laid_out([(slot.name, tuple(slot.shape)) for slot in slots if slot.dtype.is_floating_point])
    seconds = _measured(method_of(request), segments, len(request.models))
    written = sum(slot.nbytes for slot in slots)
    entries = segments[-1].stop if segments else 0
    return Estimate(len(request.models), entries, len(slots), read, written, memory_of(request, slots), seconds)


def _adapters(request: AdapterRequest) -> Estimate:
    pool, recipe = request.pool, request.recipe
    n = len(pool.adapters)
    ranks = [max(f.A.shape[0] for f in adapter.factors.values()) for adapter in pool.adapters]
    if request.space == DENSE:
        segments, digest = _laid_out([(f"{module}.weight", shape) for module, shape in pool.modules.items()]), DENSE
    else:
        space = build_space(request.space, pool)
        segments, digest = space.segments, space.digest
    rank = recipe.rank or sum(ranks)
    written = sum(4 * rank * (outs + ins) for outs, ins in pool.modules.values())
    read = sum(4 * (f.A.numel() + f.B.numel()) for adapter in pool.adapters for f in adapter.factors.values())
    method = None
    if recipe.method.name not in ("emr", "greedy_soup"):
        method = Method.of(recipe, experts_of(pool), request.space, digest)
    seconds = _measured(method, segments, n) if method else None
    return Estimate(n, segments[-1].stop, len(segments), read, written, request.memory, seconds)


def _laid_out(shapes: list[tuple[str, tuple[int, ...]]]) -> tuple[Segment, ...]:
    segments, start = [], 0
    for name, shape in shapes:
        segments.append(Segment(name, start, shape))
        start = segments[-1].stop
    return tuple(segments)


def _measured(method: Method, segments: tuple[Segment, ...], n: int) -> float | None:
    """Return the seconds of the method on all segments, from its time on the first of them, done twice."""
    if method.informed:
        return None
    sample: list[Segment] = []
    for segment in segments:
        if sample and sample[-1].stop + segment.stop - segment.start > _SAMPLE:
            break
        sample.append(segment)
    entries = sample[-1].stop
    if entries > _SAMPLE:  # one large tensor: a slice of its rows stands for it
        first = sample[0]
        rows = max(1, _SAMPLE * first.shape[0] // entries)
        sample = [Segment(first.name, 0, (rows, *first.shape[1:]))]
        entries = sample[-1].stop
    stack: Tensor = torch.randn(n, entries, generator=Key(0).torch())
    space = TensorSpace(tuple(sample))
    method(stack, space, Key(0))  # compiles
    start = time.perf_counter()
    method(stack, space, Key(0))
    return (time.perf_counter() - start) * segments[-1].stop / entries
