"""Merge adapters: encode, merge, hooks, export; no base model is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evomerge.experts.pool import Pool
from evomerge.keys import Key
from evomerge.oneshot.method import Expert, Method, merge_tensor
from evomerge.oneshot.request import AdapterRequest
from evomerge.spaces import build_space
from evomerge.spaces.base import Exported, GenomeSpace, squared_norm
from evomerge.spaces.lowrank import merge_adapters
from evomerge.spaces.statistics import DENSE
from evomerge.types import Segment


@dataclass(frozen=True, eq=False)
class MergedAdapter:
    """A merged adapter and what is told about it.

    Attributes:
        exported: its factors, rank, and what that rank loses.
        norm: Frobenius norm of its delta-W.
        parents: that of each parent.
    """

    exported: Exported
    norm: float
    parents: tuple[float, ...]


def merge(request: AdapterRequest) -> MergedAdapter:
    """Merge the adapters of a request in its space.

    Raises:
        EvomergeError: as ``Method.of``, and what the method raises.
    """
    key = Key(request.recipe.seed)
    if request.space == "dense":
        return _merge_dense(request, key)
    space = build_space(request.space, request.pool)
    method = Method.of(request.recipe, experts_of(request.pool), space.name, space.digest)
    stack = encode_all(space, request.pool)
    return exported(space, method(stack, space, key), request)


def exported(space: GenomeSpace, genome: Tensor, request: AdapterRequest) -> MergedAdapter:
    """Return a genome as the adapter that the request asks for."""
    return MergedAdapter(space.export(genome, request.recipe.rank), space.norm(genome), parent_norms(request.pool))


def encode_all(space: GenomeSpace, pool: Pool) -> Tensor:
    """Return the experts' genomes, ``[n, d]``, without a second copy of them."""
    stack = torch.empty(len(pool.adapters), space.dimension)
    for row, adapter in enumerate(pool.adapters):
        stack[row] = space.encode(adapter)
    return stack


def experts_of(pool: Pool) -> tuple[Expert, ...]:
    """Return what a method may ask about the experts of a pool."""
    return tuple(Expert(adapter.name, adapter.path, adapter.digest) for adapter in pool.adapters)


def parent_norms(pool: Pool) -> tuple[float, ...]:
    """Return the Frobenius norm of each expert's delta-W."""
    return tuple(
        math.sqrt(sum(f.scale**2 * squared_norm(f.B, f.A) for f in adapter.factors.values()))
        for adapter in pool.adapters
    )


def _merge_dense(request: AdapterRequest, key: Key) -> MergedAdapter:
    pool = request.pool
    method = Method.of(request.recipe, experts_of(pool), DENSE, DENSE)
    ranks = [max(f.A.shape[0] for f in adapter.factors.values()) for adapter in pool.adapters]

    def merge_one(stack: Tensor, segment: Segment) -> Tensor:
        # Statistics and keys go by the weight's name, as in full models.
        return merge_tensor(method, stack, replace(segment, name=f"{segment.name}.weight"), key)

    result = merge_adapters(pool.adapters, merge_one, request.recipe.rank or sum(ranks), key)
    kept = math.sqrt(sum(squared_norm(B, A) for B, A in result.factors.values()))
    return MergedAdapter(result, kept / math.sqrt(1 - result.residual**2), parent_norms(pool))
