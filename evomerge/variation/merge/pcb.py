"""PCB-Merging: every entry of every parent gets its own weight, from how large it is and whom it agrees with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.merge import MERGES
from evomerge.variation.merge.linear import Scale
from evomerge.variation.merge.sparsify import Density, Scope
from evomerge.variation.merge.weights import blocks, checked, column, normalized
from evomerge.variation.segments import by_segment


@MERGES.register("pcb", paper="Du et al. 2024, Parameter competition balancing for model merging (arXiv:2410.02396)")
def pcb(
    stack: Tensor,
    weights: Tensor,
    segments: Sequence[Segment],
    key: Key,  # noqa: ARG001
    *,
    density: Density = 0.1,
    scope: Scope = "tensor",
    lam: Scale = 1.0,
) -> Tensor:
    """Score every entry, drop all but a parent's best ``density``, and average by the scores.

    For parent i of n, over the m entries of a tensor, with ``norm`` the map of smallest and largest entry to 0
    and 1 (all to 0 if they are equal) and products entry by entry::

        intra_i = softmax(n norm(x_i x_i))                  large entries
        inter_i = sum_j softmax(norm(x_i x_j))              entries that agree with the other parents'
        b_i     = intra_i inter_i, zero below its max(1, int(density m)) largest entries
        result  = lam sum_i w_i b_i x_i / sum_i |w_i| b_i   0 where all b vanish

    with the weights normalised to sum 1 in the numerator, and their magnitudes in the denominator: for weights
    of one sign this is the mean by ``w b``, and n equal parents give themselves wherever they are kept. Scores
    do not depend on the weights. Entries that tie with the smallest kept score are all kept.

    Differs from the paper: parents have weights; the default scope balances each tensor by itself, the paper
    and the authors' code the whole vector (``scope: global``). The authors' code differs from their paper, which
    is followed here: it takes tanh of ``x_i sum_j x_j`` as inter, shifts the kept scores so that the smallest is
    0, and clamps outliers of x. ``density`` (the paper's r) defaults to that code's.

    Shapes: stack ``[n, d]``, weights ``[n]`` -> ``[d]``, float32.

    Raises:
        RunError: the shapes or segments do not fit, or a weight is not finite.
    """
    parents, exact = checked(stack, weights)
    shares = normalized(exact)
    whole = [Segment("all", 0, (parents.shape[1],))]

    def merge(part: Tensor, _: Segment) -> Tensor:
        scores = torch.stack([_score(part, i, density) for i in range(len(part))])
        return lam * _average(part, scores, shares)

    return by_segment(parents, segments if scope == "tensor" else whole, merge)


def _score(part: Tensor, i: int, density: float) -> Tensor:
    """Return ``m^2 b_i`` of the stack ``part [n, m]``, ``[m]``; m^2 keeps it near 1 and cancels in the average."""
    n, m = part.shape
    rows = part.cpu().numpy()
    own = rows[i].astype(np.float64)
    inter = np.zeros(m)
    for row in rows:
        inter += _softmax(_norm(own * row))
    score = (_softmax(n * _norm(own * own)) * inter * m**2).astype(np.float32)
    keep = max(1, int(density * m))
    threshold = np.partition(score, m - keep)[m - keep]
    return torch.from_numpy(np.where(score >= threshold, score, np.float32(0))).to(part.device)


def _norm(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _softmax(values: np.ndarray) -> np.ndarray:
    # The exponents lie in [0, n]: nothing overflows. numpy's sum does not depend on the number of threads.
    powers = np.exp(values - values.max())
    normalised: np.ndarray = powers / powers.sum()
    return normalised


def _average(part: Tensor, scores: Tensor, shares: Tensor) -> Tensor:
    scale, votes = column(shares, part), column(shares.abs() / shares.abs().sum(), part)
    merged = []
    for x, b in zip(blocks(part), blocks(scores), strict=True):
        divisor = (votes * b).sum(dim=0)
        merged.append(torch.where(divisor > 0, (scale * b * x).sum(dim=0) / divisor, 0.0))
    return torch.cat(merged)
