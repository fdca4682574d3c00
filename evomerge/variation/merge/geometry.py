"""Angles between parents: all that spherical merges and Model Stock read of them besides a weighted sum."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from evomerge.variation.merge.kernels import BLOCK


def gram(vectors: Tensor) -> np.ndarray:
    """Return the inner products of n parents' vectors, float64 ``[r, n, n]``, for ``vectors [n, r, c]``.

    numpy's ``einsum`` on float64 blocks: one thread and a fixed order, so that bytes depend on neither threads
    nor BLAS, and float32 or half-precision values cannot overflow.
    """
    n, r, c = vectors.shape
    products = np.zeros((r, n, n))
    height, width = max(1, BLOCK // max(c, 1)), min(c, BLOCK)
    for top in range(0, r, height):
        for left in range(0, c, max(width, 1)):
            block = vectors[:, top : top + height, left : left + width].double().cpu().numpy()
            products[top : top + height] += np.einsum("irc,jrc->rij", block, block)
    return products


def lengths(products: np.ndarray) -> np.ndarray:
    """Return the norms ``[..., n]`` of vectors with these inner products ``[..., n, n]``."""
    norms: np.ndarray = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    return norms


def cosines(products: np.ndarray) -> np.ndarray:
    """Return the cosines ``[..., n, n]`` of vectors with these inner products; those with a zero vector are 0."""
    norms = lengths(products)
    scales = norms[..., :, None] * norms[..., None, :]
    ratios: np.ndarray = np.divide(products, scales, out=np.zeros_like(products), where=scales > 0).clip(-1, 1)
    return ratios
