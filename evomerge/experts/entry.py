"""Which experts enter a merge: in an order, until the next one lowers its variance by too little.

The adaptive condition of Theorem 1 (equation 23) of Wang et al. 2025, Why Do More Experts Fail? (arXiv:2505.21226),
on the measured variances (18) of the pool at hand. With experts of one size and one correlation, as many enter as
equation 26 says (``Equicorrelated.n_max``), whatever the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evomerge.errors import RecipeError
from evomerge.experts.gram import Gram, Matrix
from evomerge.experts.variance import check_min_drop, correlations, merged_variance

Order = Literal["given", "fitness", "least_correlated", "greedy"]
# Correlations, or shares of a variance, that differ by less are equal: the Gram matrix knows no more.
TIE = 1e-6


def order_of(gram: Gram, by: Order, fitness: Sequence[float] | None = None) -> tuple[int, ...]:
    """Return the order in which experts enter, as indexes.

    - ``given``: the pool's.
    - ``fitness``: highest first.
    - ``least_correlated``: first the expert of the lowest mean correlation with all others, then always the one of
      the lowest mean correlation with those that are in. Sizes do not matter, signs do.
    - ``greedy``: always the one that leaves the smallest variance of the uniform merge (18). It begins with the
      smallest expert, and where sizes differ much, larger ones raise the variance again.

    Ties go by the given order; differences below ``TIE`` are ties, so that the order does not hang on rounding.

    Args:
        gram: of the pool.
        by: the order's name.
        fitness: ``[n]``, for the order ``fitness``.
    """
    n = len(gram.names)
    if by == "given":
        return tuple(range(n))
    if by == "fitness":
        if fitness is None or len(fitness) != n:
            raise ValueError(f"the order 'fitness' needs a fitness of each of the {n} experts, not {fitness}")
        return tuple(sorted(range(n), key=lambda i: -fitness[i]))
    rho = correlations(gram)
    shares = gram.products / gram.products.diagonal().mean()
    if by == "greedy":
        return _one_by_one(n, lambda i, inside: shares[i, i] + 2 * shares[i, inside].sum())
    alone = (rho.sum(axis=1) - 1) / max(n - 1, 1)
    return _one_by_one(n, lambda i, inside: rho[i, inside].mean() if inside else alone[i])


def _one_by_one(n: int, cost: Callable[[int, list[int]], float]) -> tuple[int, ...]:
    inside: list[int] = []
    while len(inside) < n:
        outside = [i for i in range(n) if i not in inside]
        costs = [cost(i, inside) for i in outside]
        inside.append(next(i for i, c in zip(outside, costs, strict=True) if c <= min(costs) + TIE))
    return tuple(inside)


def next_drop(gram: Gram, admitted: Sequence[int], candidate: int) -> float:
    """Return the fall of the variance of the uniform merge (18) when a candidate joins those admitted.

    It is below zero where the variance rises: a candidate much larger than the merge, or aligned with it.

    Args:
        gram: of the pool.
        admitted: indexes of at least one expert.
        candidate: the index of another.
    """
    return _fall(gram.products, admitted, candidate) / gram.size


def _fall(products: Matrix, admitted: Sequence[int], candidate: int) -> float:
    """Return the fall of the squared norm of the uniform merge."""
    if not len(admitted) or candidate in admitted:
        raise ValueError(f"{candidate} cannot join {list(admitted)}")
    n, rows = len(admitted) + 1, list(admitted)
    before = float(products[np.ix_(rows, rows)].sum())
    added = float(products[candidate, candidate] + 2 * products[candidate, rows].sum())
    # before / (n - 1)^2 - (before + added) / n^2, without the difference of two close numbers
    return (before * (2 * n - 1) - added * (n - 1) ** 2) / (n * (n - 1)) ** 2


@dataclass(frozen=True)
class Judgement:
    """Whether a candidate is worth merging.

    Attributes:
        drop: of the variance, in its unit.
        admit: the drop reaches the threshold.
        sentence: says so, with numbers.
    """

    drop: float
    admit: bool
    sentence: str


def judge(gram: Gram, admitted: Sequence[int], candidate: int, min_drop: float, relative: bool = True) -> Judgement:
    """Return whether a candidate's drop is at least the threshold: the adaptive condition (23).

    Args:
        gram: of the pool.
        admitted: indexes of at least one expert.
        candidate: the index of another.
        min_drop: Delta.
        relative: it is a share of the pool's mean ``sigma_i^2``.

    Raises:
        RecipeError: ``min_drop`` is not positive.
    """
    check_min_drop(min_drop)
    fall = _fall(gram.products, admitted, candidate)
    drop, share = fall / gram.size, fall / float(gram.products.diagonal().mean())
    measure = share if relative else drop
    shown, threshold = _apart(abs(measure), min_drop, 100.0 if relative else 1.0)
    amount, unit = (f"{shown} % of one expert's", " %") if relative else (shown, "")
    change = f"{'raise' if share < 0 else 'lower'} the variance of the merge by {amount}"
    change = "leave the variance of the merge as it is" if abs(share) < TIE else change
    sentence = f"{gram.names[candidate]!r} would {change}; the threshold is {threshold}{unit}"
    return Judgement(drop, measure >= min_drop, sentence)


def _apart(value: float, threshold: float, factor: float) -> tuple[str, str]:
    """Return both numbers with as few digits as tell them apart, but no fewer than three."""
    shown = (f"{factor * value:.17g}", f"{factor * threshold:.17g}")
    for digits in range(3, 17):
        shown = (f"{factor * value:.{digits}g}", f"{factor * threshold:.{digits}g}")
        if shown[0] != shown[1] or value == threshold:
            break
    return shown


@dataclass(frozen=True)
class Entry:
    """Which experts of a pool enter the merge, and why no more.

    Attributes:
        order: all experts' indexes, in the order of entry.
        variances: of the uniform merge of the first 1, 2, ..., n of them (18).
        drops: from each of those to the next, ``[n - 1]``.
        admitted: how many enter.
        reason: why entry stopped there.
    """

    order: tuple[int, ...]
    variances: tuple[float, ...]
    drops: tuple[float, ...]
    admitted: int
    reason: str


def entry(gram: Gram, order: Sequence[int], start: int = 2, min_drop: float = 0.02, relative: bool = True) -> Entry:
    """Admit experts in order, until one lowers the variance of the uniform merge by less than the threshold.

    Args:
        gram: of the pool.
        order: all its indexes.
        start: so many enter unasked.
        min_drop: the least drop Delta.
        relative: it is a share of the pool's mean ``sigma_i^2``.

    Raises:
        RecipeError: ``start`` or ``min_drop`` is not positive.
    """
    n = len(gram.names)
    check_min_drop(min_drop)
    if start < 1:
        raise RecipeError(f"start is {start}: a merge begins with an expert", where="pool.start", fix="Give 1 or more.")
    if sorted(order) != list(range(n)):
        raise ValueError(f"{list(order)} is not an order of {n} experts")
    prefixes = [merged_variance(gram, [(i in order[:k]) / k for i in range(n)]) for k in range(1, n + 1)]
    steps = [judge(gram, order[:k], order[k], min_drop, relative) for k in range(1, n)]
    refused = next((k for k in range(start, n) if not steps[k - 1].admit), None)
    if refused is not None:
        admitted, reason = refused, steps[refused - 1].sentence
    elif start >= n:
        admitted, reason = n, f"The pool has {n} expert{'s' if n > 1 else ''}; entry begins with {start}"
    else:
        admitted, reason = n, f"All {n} experts enter: even {steps[-1].sentence}"
    return Entry(tuple(order), tuple(prefixes), tuple(step.drop for step in steps), admitted, reason)
