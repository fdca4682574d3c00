"""The greedy soup of full models: each candidate is an average on disk, loaded and scored."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from evomerge.evaluation.fitness import Fitness
from evomerge.evaluation.local import score
from evomerge.evaluation.model import Model, load_base, resolve_device, resolve_dtype
from evomerge.experts.full import FullModel
from evomerge.keys import Key
from evomerge.oneshot.request import ModelRequest
from evomerge.spaces.dense import merge_full
from evomerge.spaces.lowrank import MergeTensor
from evomerge.types import Outcome, Score
from evomerge.variation.merge import MERGES
from evomerge.variation.merge.soup import greedy_soup


def brew_models(request: ModelRequest, stage: Callable[[str], None]) -> tuple[Tensor, str]:
    """Return the weights ``[n]`` of the models in their greedy soup, and in words who is in it.

    A soup of models is an average, so candidates are known by their weights: `greedy_soup` of the rows of an
    identity matrix. One that is more than a single model is written to the folder for temporary files.

    Raises:
        EvomergeError: no model can be scored, or there is no room for a candidate.
    """
    fitness = request.fitness
    assert fitness is not None, "a recipe of a greedy soup has a fitness"

    def value(weights: Tensor) -> float | None:
        with tempfile.TemporaryDirectory(prefix="evomerge-soup.") as scratch:
            outcome = _score(_candidate(request.models, weights, Path(scratch) / "soup"), fitness)
        stage(f"scored: {f'{100 * outcome.value:.1f} %' if isinstance(outcome, Score) else outcome.message}")
        return outcome.value if isinstance(outcome, Score) else None

    soup = greedy_soup(torch.eye(len(request.models)), value)
    names = [request.models[row].name for row in soup.ingredients]
    best = max(found for found in soup.scores if found is not None)
    return soup.genome, f"In the soup: {', '.join(names)} (search split {100 * best:.1f} %)."


def average(weights: Tensor) -> MergeTensor:
    """Return what makes the weighted average of one tensor's stack ``[n, m]``."""
    return lambda stack, segment: MERGES["linear"](stack, weights, (segment,), Key(0))


def _candidate(models: tuple[FullModel, ...], weights: Tensor, folder: Path) -> Path:
    if int(weights.count_nonzero()) == 1:
        return models[int(weights.argmax())].path
    merge_full(models, None, average(weights), folder)
    return folder


def _score(folder: Path, fitness: Fitness) -> Outcome:
    device = resolve_device("auto")
    network, tokenizer = load_base(folder, resolve_dtype("auto", device), device)
    return score(Model(network, tokenizer), fitness, "search")
