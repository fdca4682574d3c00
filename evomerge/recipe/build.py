"""From a recipe to the objects of a run; below this file nobody knows that recipes exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from evomerge.errors import EvomergeError, Problems, RecipeError
from evomerge.evaluation.fitness import Fitness, build_fitness, load_task
from evomerge.evaluation.local import LocalEvaluator
from evomerge.evaluation.model import Model, load_base, resolve_device, resolve_dtype
from evomerge.experts.base import must_fetch, resolve_base
from evomerge.experts.pool import Pool, load_pool
from evomerge.keys import Key
from evomerge.memory import check_memory
from evomerge.recipe.operators import registry_at
from evomerge.recipe.schema import GeneticSpec, OperatorSpec, Recipe
from evomerge.spaces import build_space
from evomerge.spaces.base import GenomeSpace
from evomerge.strategies.base import Experts, Strategy
from evomerge.strategies.genetic import Crossover, Founders, Genetic, Mutation
from evomerge.types import Segment, digest_json
from evomerge.variation.hooks import HookSpace
from evomerge.variation.hooks.apply import Hook, after, bind_hook
from evomerge.variation.hooks.user import absolute

T = TypeVar("T")
# What a generation holds beside the living and the experts, as a multiple of them: births, survivors, the best.
_COPIES = 3


@dataclass(frozen=True)
class Setup:
    """What a run needs, built and checked; only the base model is not loaded yet."""

    recipe: Recipe
    fitness: Fitness
    pool: Pool
    space: GenomeSpace
    experts: Experts
    strategy: Strategy
    hooks: tuple[Hook, ...] = ()

    @property
    def key(self) -> Key:
        """Return the root of the run's randomness."""
        return Key(self.recipe.seed)

    @property
    def conditions(self) -> str:
        """Return the digest of everything but genome and split that an outcome depends on."""
        evaluator = self.recipe.evaluator
        decoding = [evaluator.dtype, evaluator.device, evaluator.batch_tokens, evaluator.time_limit]
        return digest_json([self.pool.base, self.space.digest, self.fitness.digest, decoding])


def resolve(recipe: Recipe) -> Recipe:
    """Return the recipe with paths made absolute and every `auto` decided: what a run remembers."""
    device = resolve_device(recipe.evaluator.device)
    evaluator = recipe.evaluator.model_copy(
        update={"device": device, "dtype": resolve_dtype(recipe.evaluator.dtype, device)}
    )
    base = Path(recipe.base).expanduser()
    fitness = tuple(spec.model_copy(update={"file": _absolute(spec.file)}) for spec in recipe.fitness)
    hooks = tuple(spec.model_copy(update={"name": absolute(spec.name)}) for spec in recipe.post_merge)
    return recipe.model_copy(
        update={
            "base": str(base.resolve()) if base.is_dir() else recipe.base,
            "experts": tuple(str(Path(folder).expanduser().resolve()) for folder in recipe.experts),
            "fitness": fitness,
            "post_merge": hooks,
            "evaluator": evaluator,
        }
    )


def _absolute(file: str) -> str:
    """Return the absolute path of a file, or a name as it is: so a run can be resumed from any folder."""
    path = Path(file).expanduser()
    return str(path.resolve()) if path.is_file() else file


def build(recipe: Recipe, progress: Callable[[str], None] | None = None) -> Setup:
    """Build everything but the base model.

    Raises:
        Problems: everything that is wrong with fitness, experts and base, at once.
    """
    problems: list[EvomergeError] = []
    hooks = _collect(problems, lambda: load_hooks(recipe)) or ()
    fitness = _collect(problems, lambda: load_fitness(recipe))
    if fitness:
        problems += fitness.check()
    pool = _collect(problems, lambda: load_pool(recipe.experts))
    # A base that must be fetched is fetched only when all that is cheap to check is right.
    base = None
    if not (problems and must_fetch(recipe.base)):
        base = _collect(problems, lambda: str(resolve_base(recipe.base, progress)))
    if pool and base:
        pool = _collect(problems, lambda: load_pool(recipe.experts, base))
    space = _collect(problems, lambda: build_space(recipe.space.name, pool)) if pool else None
    _collect(problems, lambda: check_merges(recipe))
    if problems or fitness is None or pool is None or space is None:
        raise Problems(problems)
    check_memory(
        _COPIES * 4 * space.dimension * (recipe.strategy.population + len(pool.adapters)),
        f"A population of {recipe.strategy.population} in the space {space.name!r}",
        "Use `space: {name: subspace}`, a smaller population, or a larger machine.",
    )
    genomes = torch.stack([space.encode(adapter) for adapter in pool.adapters])
    strategy = with_hooks(build_genetic(recipe.strategy, space.segments), hooks, space)
    return Setup(recipe, fitness, pool, space, Experts(pool.names, genomes), strategy, hooks)


def load_fitness(recipe: Recipe) -> Fitness:
    """Load the fitness files of a recipe; all that do not load are reported at once."""
    problems: list[EvomergeError] = []
    tasks = [_collect(problems, partial(load_task, spec.file, spec.weight, spec.name)) for spec in recipe.fitness]
    if problems:
        raise Problems(problems)
    return build_fitness(task for task in tasks if task is not None)


def check_merges(recipe: Recipe) -> None:
    """Raise ``Problems`` with every merge of a recipe that means nothing in its space."""
    strategy = recipe.strategy
    merges = {"strategy.founders.merge": strategy.founders.merge, "strategy.crossover.merge": strategy.crossover.merge}
    merges |= {f"report.baselines.{number}": spec for number, spec in enumerate(recipe.report.baselines)}
    problems = []
    for place, spec in merges.items():
        try:
            registry_at(("merge",))[spec.name].check_space(recipe.space.name)
        except RecipeError as error:
            problems.append(RecipeError(error.cause, where=f"{place}.name", fix=error.fix))
    if problems:
        raise Problems(problems)


def load_hooks(recipe: Recipe) -> tuple[Hook, ...]:
    """Return the hooks that follow every merge of a recipe."""
    return tuple(bind_hook(spec.name, spec.parameters) for spec in recipe.post_merge)


def load_model(recipe: Recipe, modules: tuple[str, ...] = ()) -> Model:
    """Load the base model, with a place for an individual at each of ``modules``."""
    evaluator = recipe.evaluator
    device = resolve_device(evaluator.device)
    network, tokenizer = load_base(resolve_base(recipe.base), resolve_dtype(evaluator.dtype, device), device)
    return Model(network, tokenizer, modules, batch_tokens=evaluator.batch_tokens)


def build_evaluator(setup: Setup) -> LocalEvaluator:
    """Load the base model and return the evaluator on it."""
    model = load_model(setup.recipe, tuple(setup.space.modules))
    return LocalEvaluator(model, setup.space, setup.recipe.evaluator.time_limit)


def build_genetic(spec: GeneticSpec, segments: tuple[Segment, ...]) -> Genetic:
    """Return GENOME's strategy with the operators that the recipe names."""
    crossover = spec.crossover
    return Genetic(
        population=spec.population,
        segments=segments,
        founders=Founders(spec.founders.source, spec.founders.weights, operator(spec.founders.merge, "merge")),
        crossover=Crossover(
            trials=crossover.trials or max(1, spec.population // 2),
            rate=crossover.rate,
            parents=crossover.parents,
            weights=crossover.weights,
            select=operator(crossover.select, "select"),
            merge=operator(crossover.merge, "merge"),
        ),
        mutation=Mutation(spec.mutation.rate, operator(spec.mutation, "mutation")),
        survive=operator(spec.survivors, "survivors"),
    )


def with_hooks(strategy: Genetic, hooks: Sequence[Hook], space: HookSpace) -> Genetic:
    """Return the strategy with the hooks after its merges: of founders from pairs, and of children."""
    founders, crossover = strategy.founders, strategy.crossover
    return replace(
        strategy,
        founders=replace(founders, merge=after(founders.merge, hooks, space)),
        crossover=replace(crossover, merge=after(crossover.merge, hooks, space)),
        post_merge=tuple(hook.name for hook in hooks),
    )


def operator(spec: OperatorSpec, kind: str) -> Callable[..., Any]:
    """Return the function that a recipe names, its parameters bound."""
    return registry_at((kind,))[spec.name].bind(**spec.parameters)


def _collect(problems: list[EvomergeError], action: Callable[[], T]) -> T | None:
    """Run the action; what is wrong goes to the list, so that one pass reports everything."""
    try:
        return action()
    except Problems as error:
        problems.extend(error.problems)
    except EvomergeError as error:
        problems.append(error)
    return None
