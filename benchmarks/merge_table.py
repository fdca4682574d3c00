"""Which merges work? Every operator on the quickstart's six experts, with and without RHT in both modes.

    evomerge train populations/quickstart.yaml         # once
    python benchmarks/merge_table.py                   # about half an hour on 2 cores
    python benchmarks/merge_table.py --methods linear ties --spaces subspace

Uniform weights and each operator's default parameters; nothing is tuned. Scores are accuracies on the *search* split
(24 rows of each of six tasks), as the mean over tasks: an interval at 25 % is about ±7 points wide. `dense` merges are
exact in delta-W and come back as adapters of the experts' summed rank through a randomised SVD; `residual` is what
that loses. The space `factors` takes experts of equal ranks only, which these are not. Sums (task arithmetic,
breadcrumbs) are scaled to 0.3 of each expert, as is common for them; everything else is an average.
`fisher` and `regmean` use statistics of each expert on its own training rows. `emr` is scored with each task's own
view, so it is not one model. Ends with one line of JSON, and writes results/merge_table.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.evaluation.fitness import Fitness
from evomerge.evaluation.local import score
from evomerge.evaluation.model import Model
from evomerge.experts.pool import Pool, load_pool
from evomerge.keys import Key
from evomerge.oneshot.adapters import experts_of, parent_norms
from evomerge.oneshot.method import Method, TensorSpace
from evomerge.recipe.build import build, resolve
from evomerge.recipe.evaluators import load_model
from evomerge.recipe.load import load_recipe
from evomerge.recipe.merge import MergeRecipe
from evomerge.recipe.schema import Recipe
from evomerge.shipped import find
from evomerge.spaces import build_space
from evomerge.spaces.base import squared_norm
from evomerge.spaces.lowrank import dense_deltas, dense_shape, randomized_svd
from evomerge.spaces.statistics import DENSE
from evomerge.specs import OperatorSpec
from evomerge.statistics_run import statistics
from evomerge.types import Score, Segment
from evomerge.variation.hooks.apply import Hook, apply_hooks, bind_hook
from evomerge.variation.merge import INFORMED, MERGES
from evomerge.variation.merge.emr import emr
from evomerge.variation.merge.soup import greedy_soup

RESULTS = Path(__file__).parent / "results"
SUMS = ("breadcrumbs", "breadcrumbs_ties", "task_arithmetic")
SHARE = 0.3
HOOKS: Mapping[str, tuple[Hook, ...]] = {
    "": (),
    "rht": (bind_hook("rht", {}),),
    "rht paper": (bind_hook("rht", {"mode": "paper"}),),
}
Factors = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``score`` is ``None`` where the merge could not be scored."""

    method: str
    space: str
    hook: str
    score: float | None
    norm_ratio: float
    residual: float
    seconds: float


class Bench:
    """The pool, the base model and the tasks, loaded once."""

    def __init__(self, recipe: Recipe, folders: Sequence[Path]) -> None:
        self.recipe = recipe
        self.pool: Pool = load_pool(folders, build(recipe).pool.base)
        self.fitness: Fitness = build(recipe).fitness
        self.model: Model = load_model(recipe, tuple(self.pool.modules))
        self.norm = sum(parent_norms(self.pool)) / len(self.pool.adapters)
        self.experts = experts_of(self.pool)

    def score(self, factors: Factors) -> Score | None:
        """Return the score of these factors on the search split, if they can be scored."""
        self.model.wear(factors)
        outcome = score(self.model, self.fitness, "search")
        return outcome if isinstance(outcome, Score) else None

    def method(self, name: str, space: str, digest: str) -> Method:
        """Return a merge method with its defaults, bound to the pool."""
        settings: dict[str, Any] = {"lam": SHARE * len(self.experts)} if name in SUMS else {}
        spec = OperatorSpec.model_validate({"name": name, **settings})
        experts = tuple(str(expert.folder) for expert in self.experts)
        return Method.of(MergeRecipe(experts=experts, method=spec), self.experts, space, digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", choices=("subspace", "dense"), default=("subspace", "dense"))
    parser.add_argument("--methods", nargs="+", default=[*MERGES, *INFORMED, "emr", "greedy_soup"])
    arguments = parser.parse_args()
    recipe = resolve(load_recipe(find("populations", "quickstart")))
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(shutil.copytree(folder, Path(scratch) / Path(folder).name)) for folder in recipe.experts]
        bench = Bench(recipe, folders)
        rows = list(reference(bench))
        for space in arguments.spaces:
            informed = [name for name in arguments.methods if name in list(INFORMED)]
            if informed:
                measure(bench, folders, space)
            for name in arguments.methods:
                for row in merged(bench, name, space):
                    rows.append(row)
                    print(shown(row), flush=True)
    (RESULTS / "merge_table.md").write_text(markdown(rows), encoding="utf-8")
    print(json.dumps({"split": "search", "examples": 144, "rows": [asdict(row) for row in rows]}))


def reference(bench: Bench) -> Iterator[Row]:
    """Yield the base and every expert."""
    everyone: dict[str, Factors] = {"base": {}}
    for adapter in bench.pool.adapters:
        everyone[adapter.name] = {module: (f.scale * f.B, f.A) for module, f in adapter.factors.items()}
    for name, factors in everyone.items():
        outcome = bench.score(factors)
        norm = math.sqrt(sum(squared_norm(B, A) for B, A in factors.values())) / bench.norm
        row = Row(name, "", "", outcome.value if outcome else None, norm, 0.0, 0.0)
        print(shown(row), flush=True)
        yield row


def measure(bench: Bench, folders: Sequence[Path], space: str) -> None:
    """Write each expert's statistics on the training rows of its own task."""
    fitness = [[folder.name] for folder in folders]
    statistics([str(folder) for folder in folders], fitness, Quiet(), base=bench.recipe.base, space=space, force=True)


def merged(bench: Bench, name: str, space: str) -> Iterator[Row]:
    if name == "emr" or name == "greedy_soup":
        if space == "subspace":
            yield emr_row(bench) if name == "emr" else soup_row(bench)
        return
    operator = (INFORMED if name in list(INFORMED) else MERGES)[name]
    if operator.spaces and space not in operator.spaces:
        return
    yield from (in_dense if space == DENSE else in_subspace)(bench, name)


def in_subspace(bench: Bench, name: str) -> Iterator[Row]:
    space = build_space("subspace", bench.pool)
    stack = torch.stack([space.encode(adapter) for adapter in bench.pool.adapters])
    method = bench.method(name, "subspace", space.digest)
    child, seconds = timed(lambda: method(stack, space, Key(0)))
    for label, hooks in HOOKS.items():
        genome = apply_hooks(child, stack, space, hooks, Key(0))
        outcome = bench.score(space.factors(genome))
        ratio = space.norm(genome) / bench.norm
        yield Row(name, "subspace", label, outcome.value if outcome else None, ratio, 0.0, seconds)


def in_dense(bench: Bench, name: str) -> Iterator[Row]:
    method = bench.method(name, DENSE, DENSE)
    rank = sum(max(f.A.shape[0] for f in adapter.factors.values()) for adapter in bench.pool.adapters)
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {label: {} for label in HOOKS}
    lost, total = dict.fromkeys(HOOKS, 0.0), dict.fromkeys(HOOKS, 0.0)
    spent = 0.0
    for module in sorted(bench.pool.modules):
        shape = dense_shape(bench.pool.adapters, module)
        stack = dense_deltas(bench.pool.adapters, module)
        space = TensorSpace((Segment(f"{module}.weight", 0, shape),))
        child, seconds = timed(lambda stack=stack, space=space, module=module: method(stack, space, Key(0).at(module)))  # type: ignore[misc]
        spent += seconds
        for label, hooks in HOOKS.items():
            delta = apply_hooks(child, stack, space, hooks, Key(0).at(module))
            B, A, residual = randomized_svd(delta.view(shape), rank, Key(0).at(module))
            found[label][module] = (B, A)
            lost[label] += residual**2
            total[label] += float(delta.double().square().sum())
    for label in HOOKS:
        outcome = bench.score(found[label])
        norm = math.sqrt(total[label])
        residual = math.sqrt(lost[label]) / norm if norm else 0.0
        yield Row(name, DENSE, label, outcome.value if outcome else None, norm / bench.norm, residual, spent)


def emr_row(bench: Bench) -> Row:
    """Score each task with its own view: the mean over tasks is not that of one model."""
    space = build_space("subspace", bench.pool)
    stack = torch.stack([space.encode(adapter) for adapter in bench.pool.adapters])
    unified, seconds = timed(lambda: emr(stack))
    scores = []
    for row, name in enumerate(bench.pool.names):
        outcome = bench.score(space.factors(unified.view(row)))
        scores.append(outcome.tasks[name] if outcome else 0.0)
    norm = space.norm(unified.vector) / bench.norm
    return Row("emr", "subspace", "", sum(scores) / len(scores), norm, 0.0, seconds)


def soup_row(bench: Bench) -> Row:
    space = build_space("subspace", bench.pool)
    stack = torch.stack([space.encode(adapter) for adapter in bench.pool.adapters])

    def value(genome: Tensor) -> float | None:
        outcome = bench.score(space.factors(genome))
        return outcome.value if outcome else None

    soup, seconds = timed(lambda: greedy_soup(stack, value))
    return Row("greedy_soup", "subspace", "", value(soup.genome), space.norm(soup.genome) / bench.norm, 0.0, seconds)


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """Return what an action returns, and the CPU seconds of all its threads, which other programs hardly change."""
    start = time.process_time()
    result = action()
    return result, time.process_time() - start


def shown(row: Row) -> str:
    value = "failed" if row.score is None else f"{100 * row.score:5.1f} %"
    name = f"{row.method} {row.hook}".strip()
    numbers = f"norm {row.norm_ratio:6.2f}   residual {row.residual:.2f}   {row.seconds:.2f} s"
    return f"{name:<30} {row.space:<9} {value}   {numbers}"


def markdown(rows: Sequence[Row]) -> str:
    """Return the table: a line for each method and space, best first; columns for the hooks."""
    lines = [
        "| method | space | score, % | with rht | with rht, paper mode | norm ratio | residual | CPU seconds |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    plain = [row for row in rows if not row.hook]
    for row in sorted(plain, key=lambda row: -(row.score or 0.0)):
        others = {r.hook: r for r in rows if (r.method, r.space) == (row.method, row.space)}
        cells = [percent(others.get(label)) for label in HOOKS]
        cells += [f"{row.norm_ratio:.2f}", f"{row.residual:.2f}", f"{row.seconds:.2f}"]
        lines.append(f"| {row.method} | {row.space} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def percent(row: Row | None) -> str:
    return "" if row is None else "failed" if row.score is None else f"{100 * row.score:.1f}"


class Quiet:
    """Follows the statistics without a word."""

    def stage(self, text: str) -> None:
        """What is being done."""

    def expert(self, name: str, number: int, total: int) -> None:
        """An expert begins."""

    def step(self, done: int, total: int) -> None:
        """How far it is."""

    def finished(self, name: str) -> None:
        """They are written."""

    def kept(self, name: str) -> None:
        """They exist already."""

    def replaced(self, name: str, why: str) -> None:
        """Older ones are replaced."""

    def warn(self, text: str) -> None:
        """Something to know."""


if __name__ == "__main__":
    main()
