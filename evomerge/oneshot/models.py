"""Merge full models, streamed tensor by tensor; and fold an adapter into its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from evomerge.experts.shards import Slot
from evomerge.keys import Key
from evomerge.oneshot.method import Expert, Method, merge_tensor
from evomerge.oneshot.request import ModelRequest, check_memory
from evomerge.spaces.dense import layout, memory_needed, merge_full
from evomerge.spaces.statistics import DENSE
from evomerge.types import Segment

Progress = Callable[[int, int], None]


def merge_models(
    request: ModelRequest, output: Path, extra: Mapping[str, str], progress: Progress | None = None
) -> None:
    """Merge the models of a request into ``output``, which is written whole or not at all.

    Raises:
        EvomergeError: as ``Method.of`` and ``merge_full``.
        RunError: the merge would need more memory than there is.
    """
    check_memory(memory_of(request, slots_of(request)))
    method = method_of(request)
    key = Key(request.recipe.seed)

    def merge_one(stack: Tensor, segment: Segment) -> Tensor:
        return merge_tensor(method, stack, segment, key)

    merge_full(
        request.models,
        request.base,
        merge_one,
        output,
        dtype=_dtype(request),
        extra=extra,
        progress=progress,
    )


def method_of(request: ModelRequest) -> Method:
    """Return the method of a request, bound."""
    informed = request.recipe.method.name in ("fisher", "regmean")
    experts = [Expert(m.name, m.path, m.digest if informed else "") for m in request.models]
    return Method.of(request.recipe, experts, DENSE, DENSE)


def slots_of(request: ModelRequest) -> tuple[Slot, ...]:
    """Return the tensors that the merge will write."""
    return layout(request.models, request.base, _dtype(request))


def memory_of(request: ModelRequest, slots: tuple[Slot, ...]) -> int:
    """Return the bytes that the merge will hold at once: stacks, results, and as much again for the method."""
    largest = max((slot.nbytes for slot in slots), default=0)
    return memory_needed(request.models, request.base, slots) + largest * len(request.models)


def _dtype(request: ModelRequest) -> torch.dtype | None:
    name = request.recipe.dtype
    return getattr(torch, name) if name else None
