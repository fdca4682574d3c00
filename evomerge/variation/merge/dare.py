"""DARE: drop entries at random and rescale the rest, before another merge."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.merge import MERGES
from evomerge.variation.merge.consensus import Compat, consensus
from evomerge.variation.merge.sparsify import Density, drop_and_rescale
from evomerge.variation.merge.weights import checked, normalized, weighted_sum

PAPER = "Yu et al. 2024, Language models are Super Mario (arXiv:2311.03099)"


@MERGES.register("dare_linear", paper=PAPER)
def dare_linear(
    stack: Tensor,
    weights: Tensor,
    segments: Sequence[Segment],  # noqa: ARG001
    key: Key,
    *,
    density: Density = 0.5,
    compat: Compat = "paper",
) -> Tensor:
    """Drop and rescale every parent, then average: E[result] is the ``linear`` merge.

    ``density`` is 1 minus the paper's drop rate p. ``compat: peft`` is the sum ``sum_i w_i x_i`` with the
    weights as given.

    Shapes: stack ``[n, d]``, weights ``[n]`` -> ``[d]``, float32.

    Raises:
        RunError: the shapes do not fit, or a weight is not finite.
    """
    parents, exact = checked(stack, weights)
    kept = drop_and_rescale(parents, density, key)
    return weighted_sum(kept, normalized(exact) if compat == "paper" else exact)


@MERGES.register("dare_ties", paper=f"{PAPER}, with the consensus of Yadav et al. 2023")
def dare_ties(
    stack: Tensor,
    weights: Tensor,
    segments: Sequence[Segment],  # noqa: ARG001
    key: Key,
    *,
    density: Density = 0.5,
    compat: Compat = "paper",
) -> Tensor:
    """Drop and rescale every parent, elect a sign for each entry from what is kept, and average who agree.

    There is no trimming. A dropped entry still counts in the divisor by the sign that it had: DARE's
    rescaling has made up for the drop already, and TIES' smaller divisor would do so again (n equal parents
    would come out ``(1 - (1 - density)^n) / density`` times too large). So E[merge(x, ..., x)] = x.

    Differs from plain TIES on the rescaled parents, which divides by the kept entries only. ``compat: peft``
    does that, with the weights as given.

    Shapes: stack ``[n, d]``, weights ``[n]`` -> ``[d]``, float32.

    Raises:
        RunError: the shapes do not fit, or a weight is not finite.
    """
    parents, exact = checked(stack, weights)
    kept = drop_and_rescale(parents, density, key)
    return consensus(kept, parents if compat == "paper" else kept, exact, compat)
