"""The greedy soup of a pool: whether an expert joins is decided by a fitness, so a base model is loaded."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from evomerge.evaluation.fitness import build_fitness, load_task
from evomerge.evaluation.local import LocalEvaluator
from evomerge.evaluation.model import Model, load_base, resolve_device, resolve_dtype
from evomerge.experts.base import resolve_base
from evomerge.oneshot.adapters import MergedAdapter, encode_all, exported
from evomerge.oneshot.request import AdapterRequest
from evomerge.spaces import build_space
from evomerge.types import Score
from evomerge.variation.merge.soup import greedy_soup


def brew(request: AdapterRequest, stage: Callable[[str], None]) -> tuple[MergedAdapter, str]:
    """Return the greedy soup of a request, and in words who is in it.

    Candidates are scored on the search split of the request's fitness, best first.

    Raises:
        EvomergeError: the fitness does not load, or no expert can be scored.
    """
    fitness = build_fitness(load_task(spec.file, spec.weight, spec.name) for spec in request.recipe.fitness)
    space = build_space(request.space, request.pool)
    device = resolve_device("auto")
    stage("loading the base model")
    base = resolve_base(request.recipe.base or request.pool.base, stage)
    network, tokenizer = load_base(base, resolve_dtype("auto", device), device)
    evaluator = LocalEvaluator(Model(network, tokenizer, tuple(space.modules)), space)

    def score(genome: Tensor) -> float | None:
        [(_, outcome)] = evaluator.evaluate(genome[None], fitness, "search")
        stage(f"scored: {f'{100 * outcome.value:.1f} %' if isinstance(outcome, Score) else outcome.message}")
        return outcome.value if isinstance(outcome, Score) else None

    soup = greedy_soup(encode_all(space, request.pool), score)
    names = [request.pool.names[row] for row in soup.ingredients]
    best = max(value for value in soup.scores if value is not None)
    return exported(space, soup.genome, request), f"In the soup: {', '.join(names)} (search split {100 * best:.1f} %)."
