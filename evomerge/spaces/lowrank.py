"""The best low-rank factors of a dense delta-W, by randomised SVD, and LoRA pools merged in dense delta-weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evomerge.errors import ExpertError, RecipeError
from evomerge.experts.adapter import Adapter
from evomerge.keys import Key
from evomerge.spaces.base import VANISHING, Exported, one_thread
from evomerge.types import Segment

OVERSAMPLING = 10
POWER_ITERATIONS = 2
_ROWS = 512  # of a matrix that are in float64 at a time

MergeTensor = Callable[[Tensor, Segment], Tensor]
"""Makes one tensor ``[m]`` of a stack ``[n, m]``; the segment says its name and shape, and starts at 0.

For example ``lambda stack, s: MERGES["ties"](stack, weights, (s,), key.at(s.name), density=0.5)``: a key for each
name makes the result independent of the order of tensors and of shards.
"""


@one_thread()
def randomized_svd(M: Tensor, rank: int, key: Key) -> tuple[Tensor, Tensor, float]:
    """Return the factors of a near-best approximation ``B @ A`` of ``M``, and what it loses.

    Halko, Martinsson & Tropp 2011 (arXiv:0909.4061), Algorithm 4.4 (subspace iteration, QR at every half step)
    with Algorithm 5.1: Gaussian test matrix, oversampling 10, 2 power iterations. Where rank and oversampling
    reach the smaller side, the exact SVD. Products in float32, small decompositions in float64.

    Differs from the paper: directions below 1e-6 of the largest singular value are dropped, so that ``r <= rank``.

    Shapes: M ``[out, in]`` -> B ``[out, r]``, A ``[r, in]``, balanced: ``B = U sqrt(S)``, ``A = sqrt(S) V^T``.

    Returns:
        B, A, and the Frobenius norm of ``M - B @ A``, computed from that difference.

    Raises:
        RecipeError: ``rank`` is below 1.
    """
    if rank < 1:
        cause = f"The rank of the merged adapter is {rank}, not a positive integer"
        raise RecipeError(cause, where="rank", fix="Give a rank such as 8 or 16.")
    M = M.float()
    width = rank + OVERSAMPLING
    if width >= min(M.shape):
        U, S, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    else:
        Q = torch.linalg.qr(M @ torch.randn(M.shape[1], width, generator=key.torch()))[0]
        for _ in range(POWER_ITERATIONS):
            Z = torch.linalg.qr(M.T @ Q)[0]
            Q = torch.linalg.qr(M @ Z)[0]
        small, S, Vh = torch.linalg.svd((Q.T @ M).double(), full_matrices=False)
        U = Q.double() @ small
    keep = min(rank, int((S / S.max() > VANISHING).sum()))  # 0 for a matrix that is all zero
    root = S[:keep].sqrt()
    B = (U[:, :keep] * root).float()
    A = (root[:, None] * Vh[:keep]).float()
    return B, A, math.sqrt(_squared_difference(M, B, A))


def dense_deltas(adapters: Sequence[Adapter], module: str) -> Tensor:
    """Return delta-W of a module, one expert a row, in float32; zeros where an expert lacks the module.

    Shapes: -> ``[n, out * in]``.

    Raises:
        ExpertError: two experts have it in different shapes, or none has it.
    """
    shape = dense_shape(adapters, module)
    stack = torch.zeros(len(adapters), *shape)
    for row, adapter in zip(stack, adapters, strict=True):
        if module in adapter.factors:
            f = adapter.factors[module]
            torch.matmul(f.scale * f.B, f.A, out=row)
    return stack.flatten(1)


def dense_shape(adapters: Sequence[Adapter], module: str) -> tuple[int, int]:
    """Return ``(out, in)`` of a module.

    Raises:
        ExpertError: two experts have it in different shapes, or none has it.
    """
    shapes = {
        adapter.name: (adapter.factors[module].B.shape[0], adapter.factors[module].A.shape[1])
        for adapter in adapters
        if module in adapter.factors
    }
    if len(set(shapes.values())) != 1:
        seen = ", ".join(f"{list(shape)} in {name!r}" for name, shape in shapes.items())
        cause = f"{module} has no single shape: {seen or 'no expert has it'}"
        raise ExpertError(cause, where=module, fix="Merge adapters of one base.")
    return next(iter(shapes.values()))


@one_thread()
def merge_adapters(adapters: Sequence[Adapter], merge: MergeTensor, rank: int, key: Key) -> Exported:
    """Merge LoRA adapters in delta-W itself, module by module, and return the result as factors of one rank.

    One module's stack ``[n, out * in]`` is in memory at a time.

    Args:
        adapters: the experts; a module that one lacks is zero there.
        merge: makes ``[out * in]`` of a module's stack; its segment has the module's name and ``(out, in)``.
        rank: the largest rank of a module of the result.
        key: of the randomised SVDs, below it by module.

    Returns:
        Factors by module, and the norm of what truncation lost relative to the whole merged delta-W's.

    Raises:
        ExpertError: a module has different shapes.
        RecipeError: ``rank`` is below 1.
    """
    factors, lost, total = {}, 0.0, 0.0
    for module in sorted({module for adapter in adapters for module in adapter.factors}):
        shape = dense_shape(adapters, module)
        merged = merge(dense_deltas(adapters, module), Segment(module, 0, shape)).float().view(shape)
        B, A, residual = randomized_svd(merged, rank, key.at("svd", module))
        factors[module] = (B, A)
        lost += residual**2
        total += _squared_difference(merged, B[:, :0], A[:0])
    largest = max((A.shape[0] for _, A in factors.values()), default=1)
    return Exported(factors, max(largest, 1), math.sqrt(lost / total) if total else 0.0)


def _squared_difference(M: Tensor, B: Tensor, A: Tensor) -> float:
    """Return ``||M - B A||_F^2``: the difference of two squared norms would lose what is small beside them."""
    total = 0.0
    for start in range(0, M.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        total += float((M[rows].double() - B[rows].double() @ A.double()).square().sum())
    return total
