"""Merges made by mergekit, as JSON: what `compat: mergekit` is compared with.

Run by a Python that has mergekit, torch and numpy; it needs nothing of evomerge:

    python tests/variation/mergekit_oracle.py tests/variation/mergekit.json

A case's `method` and `parameters` are evomerge's. Where a method drops at random, torch.bernoulli is replaced by a
comparison with recorded 16-bit numbers, so that both sides drop the same entries.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEPS = 1 << 16
SHAPES = ((12, 8), (5,), (6, 3))
DIMENSION = sum(int(np.prod(shape)) for shape in SHAPES)
THREE = [0.5, 0.3, 0.4]
MIXED = [0.9, -0.2, 0.5]
TWO = [0.6, 1.0]


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Return three task vectors that have something in common, and random 16-bit numbers, both ``[3, d]``."""
    generator = np.random.default_rng(5)
    common = generator.normal(size=DIMENSION)
    stack = (common + generator.normal(size=(3, DIMENSION))).round(4).astype(np.float32)
    return stack, generator.integers(0, STEPS, size=stack.shape)


def plan() -> Iterator[tuple[str, list[float], dict[str, Any], str, dict[str, Any]]]:
    """Yield (method, weights, parameters) of evomerge, and (method, parameters) of mergekit; weights are common."""
    mergekit = {"compat": "mergekit"}
    yield "linear", THREE, {}, "linear", {}
    yield "task_arithmetic", MIXED, {"lam": 0.7}, "task_arithmetic", {"lambda": 0.7}
    for weights in (THREE, MIXED):
        for density in (0.05, 0.5, 1.0):
            thin = {"density": density}
            yield "ties", weights, {**mergekit, **thin, "lam": 0.7}, "ties", {**thin, "lambda": 0.7}
        for density in (0.6, 1.0):
            thin = {"density": density}
            yield "dare_linear", weights, {**mergekit, **thin}, "dare_linear", thin
            yield "dare_ties", weights, {**mergekit, **thin}, "dare_ties", thin
            window = {"density": density, "epsilon": 0.2}
            yield "della", weights, {**mergekit, **window, "lam": 0.7}, "della", {**window, "lambda": 0.7}
            yield "della_linear", weights, {**mergekit, **window}, "della_linear", window
        for density, gamma in ((0.6, 0.1), (0.9, 0.01), (0.95, 0.3), (1.0, 0.1)):
            tails = {"density": density, "gamma": gamma}
            yield "breadcrumbs", weights, {**mergekit, **tails, "lam": 0.7}, "breadcrumbs", {**tails, "lambda": 0.7}
            yield "breadcrumbs_ties", weights, {**mergekit, **tails}, "breadcrumbs_ties", tails
    for density in (0.4, 1.0):
        yield "sce", [1.0, 1.0, 1.0], {"density": density}, "sce", {"select_topk": density}
    yield "model_stock", [1.0, 1.0, 1.0], {}, "model_stock", {}
    yield "model_stock", [1.0, 1.0], {}, "model_stock", {}
    yield "karcher", THREE, mergekit, "karcher", {}
    yield "slerp", THREE, {}, "multislerp", {}
    for weights in (TWO, [1.3, -0.3]):
        yield "slerp", weights, {}, "slerp", {"t": weights[1] / sum(weights)}
        yield "nuslerp", weights, {}, "nuslerp", {}
        yield "nuslerp", weights, {"per": "row"}, "nuslerp", {"nuslerp_flatten": False}
        rows = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
        yield "nuslerp", weights, {"per": "column"}, "nuslerp", rows


@contextmanager
def recorded(words: np.ndarray, probabilities: list[np.ndarray]) -> Iterator[None]:
    """Let torch.bernoulli keep what is below the next row of ``words [n, m]``, and note the probabilities."""
    before, rows = torch.bernoulli, iter(words)

    def bernoulli(chances: torch.Tensor) -> torch.Tensor:
        probabilities.append(chances.flatten().numpy().copy())
        below = next(rows) < np.rint(probabilities[-1].astype(np.float64) * STEPS)
        return torch.from_numpy(below).reshape(chances.shape).to(chances.dtype)

    torch.bernoulli = bernoulli
    try:
        yield
    finally:
        torch.bernoulli = before


def merge(name: str, rows: torch.Tensor, weights: list[float], parameters: dict[str, Any]) -> torch.Tensor:
    """Merge one tensor's parents with mergekit; the base is zero, so that they are task vectors."""
    from mergekit.merge_methods.api import merge_tensors

    parents = [row.clone() for row in rows]
    if name == "slerp":  # it has two models, one of them the base
        return merge_tensors(parents, name, parameters=parameters, base_index=0)
    if name in ("linear", "nuslerp", "multislerp"):
        return merge_tensors(parents, name, parameters={"weight": weights, **parameters})
    if name == "karcher":
        return merge_tensors(parents, name, parameters=parameters)
    if name not in ("sce", "model_stock"):
        parameters = {"weight": dict(enumerate(weights, 1)), **parameters}
    return merge_tensors([torch.zeros_like(rows[0]), *parents], name, parameters=parameters, base_index=0)


def case(entry: tuple[str, list[float], dict[str, Any], str, dict[str, Any]]) -> dict[str, Any]:
    """Merge every tensor as the entry says."""
    method, weights, parameters, name, theirs = entry
    stack, words = inputs()
    merged: list[float] = []
    chances: list[list[float]] = [[] for _ in weights]
    for shape in SHAPES:
        part = slice(len(merged), len(merged) + int(np.prod(shape)))
        rows = torch.from_numpy(stack[: len(weights), part]).reshape(-1, *shape)
        probabilities: list[np.ndarray] = []
        with recorded(words[:, part], probabilities):
            merged += merge(name, rows, weights, theirs).flatten().tolist()
        for row, probability in zip(chances, probabilities, strict=False):
            row += probability.tolist()
    found = {"method": method, "weights": weights, "parameters": parameters, "mergekit": [name, theirs]}
    if any(chances):
        found["probabilities"] = [[round(p, 6) for p in row] for row in chances]
    return {**found, "merged": [float(f"{x:.8g}") for x in merged]}


def oracle() -> dict[str, Any]:
    """Return versions, inputs and cases."""
    stack, words = inputs()
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("mergekit", "torch")},
        "shapes": SHAPES,
        "stack": [[round(float(x), 4) for x in row] for row in stack],
        "words": words.tolist(),
        "cases": [case(entry) for entry in plan()],
    }


if __name__ == "__main__":
    found = oracle()
    lines = ",\n".join(json.dumps(item) for item in found.pop("cases"))
    head = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
    Path(sys.argv[1]).write_text(f'{{{head},\n"cases": [\n{lines}\n]}}\n')
