"""Launch a run, resume a run: what the command line does, for Python too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from evomerge.checkpoint.lock import run_lock
from evomerge.checkpoint.race import Race
from evomerge.checkpoint.replay import keep_replay, read_replay
from evomerge.checkpoint.run import (
    BASES,
    RECIPE,
    RunFolder,
    check_unchanged,
    create,
    discard,
    environment_changes,
    read_manifest,
    refuse_existing,
)
from evomerge.checkpoint.scoring import Scored, Scoring
from evomerge.engine import Search, Watch
from evomerge.errors import EvomergeError, ExpertError, FitnessError, Problems, RecipeError, RunError
from evomerge.evaluation.evaluator import Evaluator, alone
from evomerge.evaluation.objective import Objective, references_of
from evomerge.evaluation.rows import check_counts
from evomerge.evaluation.usage import Usage
from evomerge.outputs import final_report, publish_best
from evomerge.plan import Plan, make_plan
from evomerge.recipe.build import Setup, build, resolve
from evomerge.recipe.evaluators import open_evaluator, scored_by
from evomerge.recipe.load import parse_recipe, recipe_data
from evomerge.recipe.schema import WHERE, Recipe
from evomerge.report.cost import Costs
from evomerge.report.table import FinalTable
from evomerge.steady import Steady
from evomerge.stop import Cost, Stop
from evomerge.types import Failure, Score, State, digest_rows


class Console(Watch, Protocol):
    """A watch that also hears about the stages around the loop."""

    def stage(self, text: str) -> None:
        """Take note of what is being done now."""
        ...

    def plan(self, plan: Plan) -> None:
        """Take note of what is about to be done, and what it will take."""
        ...


class BaseFailsError(FitnessError):
    """The fitness fails on the plain base model, so it would fail on everybody."""


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, last state, table on the final split with its reading in words, and its costs."""

    folder: Path
    setup: Setup
    state: State
    table: FinalTable
    verdict: str
    costs: Costs


def launch(recipe: Recipe, folder: Path, console: Console, *, replay: Path | None = None) -> Finished:
    """Start a new run in a folder that holds none yet.

    Args:
        recipe: what to run.
        folder: where to.
        console: hears of it.
        replay: folder of a run in steady state, in whose order births are asked for and told.

    Raises:
        Problems: everything that is wrong with the recipe's files, before anything heavy starts.
        RunError: the folder holds a run, or another process uses it.
    """
    refuse_existing(folder)
    if replay and recipe.mode != "steady":
        cause = f"only a run in steady state can be replayed, and the recipe's mode is {recipe.mode!r}"
        raise RecipeError(cause, where="mode", fix=f"Take the recipe of that run: {replay / RECIPE}.")
    console.stage("checking recipe, fitness and experts")
    setup = build(resolve(recipe), console.stage)
    with run_lock(folder), ExitStack() as stack:
        keep_replay(folder, replay)
        create(folder, recipe_text(setup.recipe), manifest(setup), setup.space)
        run = RunFolder(folder, setup.recipe.checkpoint.keep)
        with _discarded_on(folder, RunError, ExpertError):
            evaluator = stack.enter_context(open_evaluator(setup, console.stage, run.ledger.record))
        with _discarded_on(folder, FitnessError, RecipeError, Problems):
            search = _search(setup, run, evaluator, console)
        return _finish(setup, run, search, console)


@contextmanager
def _discarded_on(folder: Path, *errors: type[EvomergeError]) -> Iterator[None]:
    """Forget the run if one of the errors ends the block: nothing was searched, it can be launched anew."""
    try:
        yield
    except errors:
        discard(folder)
        raise


def resume(folder: Path, console: Console, *, allow_changes: bool = False, workers: str | None = None) -> Finished:
    """Continue a run from its latest snapshot, to the same bytes as if it had never stopped.

    Args:
        folder: of the run.
        console: hears of it.
        allow_changes: resume although recipe, fitness files or experts have changed.
        workers: how many score it from now on, ``auto``, or ``local`` for none but this process; by default as before.

    Raises:
        RunError: there is no run, another process uses it, or what it was started with has changed.
    """
    read_manifest(folder)
    with run_lock(folder), ExitStack() as stack:
        console.stage("checking that nothing has changed")
        setup = build(resolve(read_recipe(folder, scored_by(workers))), console.stage, bases=folder / BASES)
        check_unchanged(folder, manifest(setup), allow_changes=allow_changes)
        if changes := environment_changes(folder):
            console.stage(f"note: scores may differ in the last digits, for this machine differs: {'; '.join(changes)}")
        run = RunFolder(folder, setup.recipe.checkpoint.keep)
        evaluator = stack.enter_context(open_evaluator(setup, console.stage, run.ledger.record))
        return _finish(setup, run, _search(setup, run, evaluator, console), console)


def dry_run(recipe: Recipe, console: Console) -> None:
    """Check everything, load the base, score it once, and tell the plan; nothing is written."""
    console.stage("checking recipe, fitness and experts")
    setup = build(resolve(recipe), console.stage)
    with open_evaluator(setup, console.stage, lambda _: None) as evaluator:
        console.stage("scoring the base model once")
        measured = alone(evaluator, torch.zeros(setup.space.dimension), setup.fitness, "search")
        base = _scored(measured.outcomes[0])
        _check(setup, base)
        console.plan(make_plan(setup, base, measured.usages[0], evaluator.workers))


def read_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the resolved recipe of a run, with ``key.sub=value`` overrides."""
    file = folder / RECIPE
    if not file.is_file():
        raise RunError(f"there is no run in {folder}", where=str(file), fix="`evomerge ls runs` lists the runs here.")
    return parse_recipe(file.read_text(encoding="utf-8"), str(file), overrides)


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as YAML; reading it gives an equal recipe."""
    return yaml.safe_dump(recipe_data(recipe), sort_keys=False, allow_unicode=True)


def manifest(setup: Setup) -> dict[str, Any]:
    """Return everything that must not change between launch and resume."""
    return {
        "recipe": setup.recipe.model_dump(mode="json", exclude={"train": True, "evaluator": {*WHERE}}),
        "fitness": {task.name: {"file": str(task.source), "digest": task.digest} for task in setup.fitness.tasks},
        "experts": {adapter.name: adapter.digest for adapter in setup.pool.adapters},
        "space": setup.space.digest,
        "user_files": setup.user_files,
    }


def _search(setup: Setup, run: RunFolder, evaluator: Evaluator, console: Console) -> Search:
    """Score the base, and what the objective is normalised by; return the search, ready to run."""
    scoring = Scoring(evaluator, setup.fitness, run.outcomes, setup.conditions)
    text = recipe_text(setup.recipe)
    base = _start(setup, run, scoring, evaluator.workers, console)
    steady = setup.recipe.mode == "steady"
    return (partial(Steady, replay=read_replay(run.path)) if steady else Search)(
        strategy=setup.strategy,
        space=setup.space,
        scoring=scoring,
        objective=_objective(setup, base, run, scoring, console).apply,
        stop=Stop(**setup.recipe.stop.model_dump()),
        each=Cost.of([base]),
        key=setup.key,
        publish=lambda state: publish_best(run.path / "best", setup, state, text),
        race=_race(setup, base, run, scoring, console),
    )


def _finish(setup: Setup, run: RunFolder, search: Search, console: Console) -> Finished:
    if (latest := run.latest()) is not None:
        console.stage(f"continuing after generation {latest.generation}")
    state = search.run(run, console)
    reasons = [event["reason"] for event in run.ledger.events() if event["event"] == "stop"]
    console.stage(f"opening the final split: {reasons[-1]}")
    found = final_report(setup, run, search.scoring, state, recipe_text(setup.recipe), console.tick)
    return Finished(run.path, setup, state, *found)


def _start(setup: Setup, run: RunFolder, scoring: Scoring, workers: int, console: Console) -> Score:
    """Score the base, which shows that the fitness works and what an evaluation takes, and tell the plan."""
    recipe = setup.recipe
    event = {"event": "start", "run": recipe.name, "seed": recipe.seed, "experts": list(setup.pool.names)}
    run.ledger.record({**event, "space": setup.space.name, "dimension": setup.space.dimension})
    (base,) = scoring.score(torch.zeros(1, setup.space.dimension), "search", -1)
    score = _scored(base.outcome)
    event = {"event": "base", "fitness": score.value, "tasks": dict(score.tasks), **Cost.of([score]).counts()}
    run.ledger.record(event, base.usage.clock())
    if score.truncated:
        what = f"{score.truncated:,} texts are longer than the model's context: their beginning is cut off"
        console.stage(f"note: {what} (evaluator.overlong: {recipe.evaluator.overlong})")
    _check(setup, score)
    clock = next(clock for clock in run.ledger.clocks() if "seconds" in clock)
    console.plan(make_plan(setup, score, Usage(clock["seconds"], clock.get("memory", 0)), workers))
    return score


def _objective(setup: Setup, base: Score, run: RunFolder, scoring: Scoring, console: Console) -> Objective:
    """Return how the tasks' scores become one number; for a normalised one, the experts are scored first."""
    references = None
    if setup.recipe.objective.normalize == "best_expert":
        console.stage("scoring the experts, which the objective is normalised by")
        scored = scoring.score(setup.experts.genomes, "search", -1, console.tick)
        references = references_of(base, [one.outcome for one in scored if isinstance(one.outcome, Score)])
        _record(run, base, scored, {"tasks": {task: list(pair) for task, pair in references.items()}})
    spec = setup.recipe.objective
    return Objective(spec.name, setup.fitness.shares(base.tasks), spec.parameters, references)


def _race(setup: Setup, base: Score, run: RunFolder, scoring: Scoring, console: Console) -> Race | None:
    """Return how births are raced, if the recipe says so; the experts are scored first."""
    if setup.recipe.racing is None:
        return None
    console.stage("scoring the experts, who show which rows tell most")
    scored = scoring.score(setup.experts.genomes, "search", -1, console.tick)
    outcomes = zip(digest_rows(setup.experts.genomes), (one.outcome for one in scored), strict=True)
    experts = {digest: outcome for digest, outcome in outcomes if isinstance(outcome, Score)}
    if not experts:
        first = scored[0].outcome
        assert isinstance(first, Failure), "it is no score"
        cause = f"no expert could be scored; the first failed with {first.kind}: {first.message}"
        raise RunError(cause, where="racing", fix="Mend the fitness: `evomerge score` tries it on a single expert.")
    race = Race.of(scoring, setup.fitness, experts, setup.key.at("racing"), **setup.recipe.racing.model_dump())
    _record(run, base, scored, {})
    return race


def _record(run: RunFolder, base: Score, experts: Sequence[Scored], said: Mapping[str, Any]) -> None:
    """Record what the experts' scores, taken before the search, cost and show."""
    cost = Cost.of((one.outcome for one in experts if not one.saved), failed=Cost.of([base]))
    event = {"event": "references", "evaluated": len(experts), **said, **cost.counts()}
    run.ledger.record(event, Usage.of(one.usage for one in experts).clock())


def _check(setup: Setup, base: Score) -> None:
    """Raise what only the base's score shows: an objective that cannot take it, a budget too small to begin."""
    spec = setup.recipe.objective
    # Normalised, the base is at 0 whatever the experts score.
    references = references_of(base, []) if spec.normalize == "best_expert" else None
    Objective(spec.name, setup.fitness.shares(base.tasks), spec.parameters, references).check(base)
    racing = setup.recipe.racing is not None
    if racing:
        check_counts(setup.fitness, base)
    stop, each = setup.recipe.stop, Cost.of([base])
    for unit, budget, one in (("examples", stop.examples, each.examples), ("tokens", stop.tokens, each.tokens)):
        if budget is not None:
            why = "the objective is normalised by" if references else "the race begins with"
            _check_budget(unit, budget, one, len(setup.experts.names) if references or racing else 0, why)


def _check_budget(unit: str, budget: int, one: int, experts: int, why: str) -> None:
    """Raise ``RecipeError`` if a budget would never end, or not reach for one evaluation beside the experts'."""
    cause, fix = "", "Give a larger budget."
    if not one:
        cause = f"a budget of {unit} needs a fitness that uses the model: scoring the base took none"
        fix = "Give a budget of examples."
    elif budget < (takes := (experts + 1) * one):
        first = f"the {experts} experts that {why} and " if experts else ""
        cause = f"a budget of {budget:,} {unit} does not reach for {first}one evaluation: it takes {takes:,}"
    if cause:
        raise RecipeError(cause, where=f"stop.{unit}", fix=fix)


def _scored(outcome: Score | Failure) -> Score:
    """Return the base's score; a fitness that fails on the plain base would fail on everybody."""
    if isinstance(outcome, Failure):
        raise BaseFailsError(
            f"the fitness fails on the base model ({outcome.kind}): {outcome.message}",
            where="fitness",
            fix="Mend the fitness file; `evomerge score base --base ... --fitness ...` tries it alone.",
        )
    return outcome
