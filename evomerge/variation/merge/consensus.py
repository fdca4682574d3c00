"""TIES' last two steps: elect a sign for every entry, then average the parents that agree with it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from evomerge.variation.merge.weights import blocks, column, normalized

Compat = Literal["paper", "peft"]


def consensus(values: Tensor, carriers: Tensor, weights: Tensor, compat: Compat) -> Tensor:
    """Elect signs from ``values`` and merge what agrees.

    The sign of an entry is that of the unweighted sum over parents (+1 for a sum of zero). A parent agrees
    where its entry of ``carriers`` has that sign; zeros agree with nothing. The merged entry is the sum of
    ``w x`` over those who agree, divided by

    - paper: the share of the weights' magnitude that agrees, after the weights are normalised to sum 1. For
      weights of one sign this is the sum of ``w x`` over the sum of ``w`` (and TIES' mean for equal weights);
      for mixed signs it keeps ``merge(x, x) = x`` without dividing by a sum that may cancel entry by entry.
    - peft: the number of those who agree, with the weights as given.

    An entry where none agree is 0.

    Args:
        values: what is voted on and merged, ``[n, d]``.
        carriers: ``values`` before a random drop, ``[n, d]``; ``values`` themselves if none was dropped.
        weights: ``[n]``.
        compat: the divisor.
    """
    if compat == "paper":
        weights = normalized(weights)
        share = weights.abs() / weights.abs().sum()
    else:
        share = torch.ones_like(weights)
    scale, votes = column(weights, values), column(share, values)
    merged = []
    for block, carrier in zip(blocks(values), blocks(carriers), strict=True):
        # In float64 the sum of a few float32 numbers is exact enough that no order of parents flips a sign.
        elected = torch.where(block.sum(dim=0, dtype=torch.float64) >= 0, 1.0, -1.0)
        agree = carrier.sign() == elected
        total = (scale * block * agree).sum(dim=0)
        divisor = (votes * agree).sum(dim=0)
        merged.append(torch.where(divisor > 0, total / divisor, 0.0))
    return torch.cat(merged)
