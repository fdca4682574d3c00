"""What all merge methods share: checked arguments, normalised weights, and the weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.errors import RunError
from evomerge.variation.merge.kernels import BLOCK, kernels

# Weights whose sum is a smaller part of their magnitudes than this cancel: an average would be all rounding.
CANCELS = 1e-6


def checked(stack: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stack ``[n, d]`` in float32 and the weights ``[n]`` in float64.

    Raises:
        RunError: the shapes do not fit, the stack has no row, or a weight is not finite.
    """
    if stack.ndim != 2 or stack.shape[0] == 0:
        raise RunError(
            f"A stack of shape {tuple(stack.shape)} cannot be merged",
            where="stack",
            fix="Pass [n, d]: one row for each of at least one parent.",
        )
    if weights.shape != stack.shape[:1]:
        raise RunError(
            f"Weights of shape {tuple(weights.shape)} for {stack.shape[0]} parents",
            where="weights",
            fix="Pass one weight for each row of the stack.",
        )
    exact = weights.to("cpu", torch.float64)
    if not bool(torch.isfinite(exact).all()):
        raise RunError(
            f"The weights {exact.tolist()} are not all finite",
            where="weights",
            fix="A failed evaluation is a Failure, never a number; leave such parents out.",
        )
    return stack.float().contiguous(), exact


def normalized(weights: Tensor) -> Tensor:
    """Return the weights ``[n]`` divided by their sum, or ``1/n`` each where they cancel."""
    total = weights.sum()
    if total.abs() <= CANCELS * weights.abs().sum():
        return torch.full_like(weights, 1 / len(weights))
    return weights / total


def column(weights: Tensor, like: Tensor) -> Tensor:
    """Return the weights ``[n]`` as ``[n, 1]`` with the dtype and device of the stack ``like``."""
    return weights.to(like.device, like.dtype)[:, None]


def blocks(stack: Tensor) -> tuple[Tensor, ...]:
    """Return views of at most ``BLOCK`` columns each of the stack ``[n, d]``."""
    return torch.split(stack, BLOCK, dim=1)


def weighted_sum(stack: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum_i weights[i] stack[i]``, ``[d]``.

    Not a matrix product: the order in which BLAS adds may depend on threads and alignment; bytes must not.
    """
    parents = stack.float().contiguous()
    return kernels(parents).weighted_sum(parents, weights.numpy())
