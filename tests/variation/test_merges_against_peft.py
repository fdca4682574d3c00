"""PEFT's own functions as the outside oracle, tensor by tensor."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close

from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.merge import MERGES
from evomerge.variation.merge.sparsify import random_drop

SEGMENTS = (
    Segment("a", 0, (12, 8)),
    Segment("b", 96, (5,)),
    Segment("c", 101, (3,)),
    Segment("d", 104, (1,)),
)
KEY = Key(5)
WEIGHTS = [[1.0, 1.0, 1.0], [0.2, 0.3, 0.5], [1.5, -0.7, 0.0]]


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    # The file alone: importing the package would import transformers, which takes seconds.
    package = importlib.util.find_spec("peft")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0], "utils", "merge_utils.py")
    spec = importlib.util.spec_from_file_location("peft_merge_utils", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stack_of(seed: int) -> torch.Tensor:
    return torch.randn(3, 105, generator=Key(seed).torch())


def by_tensor(function, stack: torch.Tensor, weights: torch.Tensor, **params: object) -> torch.Tensor:
    merged = [
        function([row[s.start : s.stop].reshape(s.shape) for row in stack], weights, **params).flatten()
        for s in SEGMENTS
    ]
    return torch.cat(merged)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sums(peft: ModuleType, weights: list[float]) -> None:
    stack, w = stack_of(1), torch.tensor(weights)
    expected = by_tensor(peft.task_arithmetic, stack, w)
    assert_close(MERGES["task_arithmetic"](stack, w, SEGMENTS, KEY), expected)
    assert_close(MERGES["linear"](stack, w, SEGMENTS, KEY), expected / w.sum())


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties(peft: ModuleType, weights: list[float], density: float) -> None:
    stack, w = stack_of(2), torch.tensor(weights)
    expected = by_tensor(peft.ties, stack, w, density=density)
    child = MERGES["ties"](stack, w, SEGMENTS, KEY, density=density, compat="peft")
    assert_close(child, expected)


def test_ties_in_the_global_scope_is_pefts_on_the_flat_genome(peft: ModuleType) -> None:
    stack, w = stack_of(3), torch.tensor(WEIGHTS[1])
    child = MERGES["ties"](stack, w, SEGMENTS, KEY, density=0.3, compat="peft", scope="global")
    assert_close(child, peft.ties(list(stack), w, density=0.3))


@pytest.mark.parametrize("n", [2, 3])
def test_the_papers_ties_is_pefts_for_unit_weights(peft: ModuleType, n: int) -> None:
    # For equal weights the paper's mean over those who agree is PEFT's with weights 1.
    stack = stack_of(4)[:n, :96]
    child = MERGES["ties"](stack, torch.full((n,), 1 / n), SEGMENTS[:1], KEY, density=0.5)
    assert_close(child, peft.ties(list(stack), torch.ones(n), density=0.5))


@pytest.mark.parametrize("density", [0.125, 0.5, 0.875])  # exact in 16 bits
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_with_the_same_masks(
    peft: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, weights: list[float], density: float
) -> None:
    # PEFT draws from torch's global generator; we hand it our key's masks and let it do the rest.
    stack, w = stack_of(6), torch.tensor(weights)
    drop = random_drop(stack, density, KEY)
    masks = torch.from_numpy((drop.words(0, 105) < drop.limit).astype("float32"))
    ours = iter([row[s.start : s.stop].reshape(s.shape) for s in SEGMENTS for row in masks])
    asked = []

    def bernoulli(probability: torch.Tensor) -> torch.Tensor:
        asked.append(probability)
        return next(ours)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    expected = by_tensor(getattr(peft, name), stack, w, density=density)
    assert len(asked) == 12 and all((p == density).all() for p in asked)
    assert_close(MERGES[name](stack, w, SEGMENTS, KEY, density=density, compat="peft"), expected)


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_without_drops(peft: ModuleType, name: str) -> None:
    stack, w = stack_of(7), torch.tensor(WEIGHTS[2])
    child = MERGES[name](stack, w, SEGMENTS, KEY, density=1.0, compat="peft")
    assert_close(child, by_tensor(getattr(peft, name), stack, w, density=1.0))
