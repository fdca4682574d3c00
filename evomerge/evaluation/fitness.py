"""Load fitness files, run them, and turn whatever they return into a ``Score`` or a ``Failure``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeError, FitnessError
from evomerge.evaluation.data import Data
from evomerge.evaluation.model import Model
from evomerge.evaluation.scorers import Generation
from evomerge.plugins import MEND, import_file
from evomerge.shipped import find
from evomerge.types import Outcome, Score, Split, digest_bytes, digest_json

Function = Callable[[Model, Split], Any]
_FIX = f"{MEND} (the shipped ones need `pip install 'evomerge[quickstart]'`)."


class WrongType(TypeError):
    """A fitness returned something that is not a number, a list of numbers, or a dict of these."""


@dataclass(frozen=True)
class Task:
    """One fitness file of a run: a name, the callable in it, and its weight in the mean."""

    name: str
    function: Function
    source: Path
    weight: float = 1.0
    helpers: tuple[Path, ...] = ()

    @property
    def data(self) -> Data | None:
        """Return the rows behind a scorer; a plain function's data are its own affair."""
        data = getattr(self.function, "data", None)
        return data if isinstance(data, Data) else None

    @cached_property
    def digest(self) -> str:
        """Return the digest of the file, of the helpers beside it that it imported, and of its rows."""
        rows = self.data.digest if self.data else ""
        return digest_bytes(*(path.read_bytes() for path in (self.source, *self.helpers)), rows.encode())

    def examples(self, split: Split) -> int:
        """Return the number of rows of a split, 0 if they are not known beforehand."""
        return len(self.data.rows(split)) if self.data else 0


@dataclass(frozen=True)
class Fitness:
    """The weighted mean of the tasks of a run. Higher is better."""

    tasks: tuple[Task, ...]

    @cached_property
    def digest(self) -> str:
        """Return the digest of all tasks and weights: outcomes of another digest are never reused."""
        return digest_json([(task.name, task.digest, task.weight) for task in self.tasks])

    def __call__(self, model: Model, split: Split) -> Score:
        """Score the individual that the model wears; raises what a fitness file raises."""
        values: dict[str, float] = {}
        examples: dict[str, tuple[float, ...]] = {}
        total = 0.0
        results = self._generated(model, split)
        for task in self.tasks:
            result = results[task.name] if task.name in results else task.function(model, split)
            parts = named_scores(task.name, result)
            for name, scores in parts.items():
                values[name] = sum(scores) / len(scores)
                examples[name] = tuple(scores)
                total += task.weight * values[name] / len(parts)
        value = total / sum(task.weight for task in self.tasks)
        if not all(_finite(number) for number in (value, *values.values())):
            raise FloatingPointError(f"the fitness is not a finite number: {values}")
        return Score(value, values, examples)

    def _generated(self, model: Model, split: Split) -> dict[str, list[float]]:
        """Score the tasks that generate, all their prompts together: a step of decoding costs as much for few rows."""
        # Not a subclass: its own `__call__` must be heard.
        scorers = {task.name: task.function for task in self.tasks if type(task.function) is Generation}
        results: dict[str, list[float]] = {}
        for stop in sorted({tuple(scorer.stop) for scorer in scorers.values()}):
            asked = {name: scorer.prompts(split) for name, scorer in scorers.items() if tuple(scorer.stop) == stop}
            limits = [scorers[name].max_new_tokens for name, prompts in asked.items() for _ in prompts]
            prompts = [prompt for prompts in asked.values() for prompt in prompts]
            texts = iter(model.generate(prompts, max_new_tokens=limits, stop=stop))
            for name, own in asked.items():
                results[name] = scorers[name].grade([next(texts) for _ in own], split)
        return results

    def shares(self, names: Iterable[str]) -> dict[str, float]:
        """Return the weight of each reported task; a task that reports several parts divides its weight."""
        found: dict[str, float] = {}
        listed = list(names)
        for task in self.tasks:
            parts = [name for name in listed if name == task.name or name.startswith(f"{task.name}.")]
            found |= dict.fromkeys(parts, task.weight / max(1, len(parts)))
        return found

    def check(self) -> list[EvomergeError]:
        """Return what is wrong with the tasks' data."""
        problems: list[EvomergeError] = []
        for task in self.tasks:
            try:
                problems += task.data.check(task.name) if task.data else []
            except EvomergeError as error:
                problems.append(error)
            except Exception as error:  # noqa: BLE001 - a user's loader may raise anything
                problems.append(_broken(task.name, task.source, error))
        return problems


def named_scores(name: str, result: Any) -> dict[str, list[float]]:
    """Return ``{task: per-example scores}`` of what a fitness returned: a number, a list, or a dict of these."""
    if isinstance(result, Mapping):
        if not result:
            raise WrongType(f"fitness {name!r} returned an empty dict")
        return {f"{name}.{part}": _numbers(f"{name}.{part}", value) for part, value in result.items()}
    return {name: _numbers(name, result)}


def _numbers(name: str, value: Any) -> list[float]:
    items = value.tolist() if hasattr(value, "tolist") else value
    items = items if isinstance(items, Sequence) and not isinstance(items, str | bytes) else [items]
    if not items or not all(isinstance(item, Real) for item in items):
        got = f"{type(value).__name__} {str(value)[:60]!r}"
        raise WrongType(
            f"fitness {name!r} must return a number, a list of numbers or a dict of these; it returned {got}"
        )
    return [float(item) for item in items]


def _finite(number: float) -> bool:
    return number - number == 0


def load_task(name: str, weight: float = 1.0, title: str | None = None) -> Task:
    """Load a fitness file by name or path.

    Raises:
        FitnessError: no such file, it does not import, or it has no callable ``fitness``.
    """
    source = find("fitness", name)
    plugin = import_file(source, "fitness", FitnessError, _FIX)
    function = getattr(plugin.module, "fitness", None)
    if function is None:
        raise FitnessError(
            f"{source.name} defines no `fitness`",
            where=str(source),
            fix="Define `def fitness(model, split): ...` or `fitness = Generation(...)`; see fitness/template.py.",
        )
    if not callable(function) or not _takes_two(function):
        raise FitnessError(
            f"`fitness` in {source.name} cannot be called with (model, split)",
            where=str(source),
            fix="Define `def fitness(model, split): ...` or use a scorer; see fitness/template.py.",
        )
    return Task(title or source.stem, function, source, weight, plugin.helpers)


def _takes_two(function: Function) -> bool:
    try:
        inspect.signature(function).bind(None, "search")
    except (TypeError, ValueError):  # wrong arguments, or a builtin that does not tell its own
        return False
    return True


def _broken(name: str, source: Path, error: Exception) -> FitnessError:
    return FitnessError(
        f"fitness {name!r} does not load: {type(error).__name__}: {error}",
        where=str(source),
        fix=_FIX,
    )


def build_fitness(tasks: Iterable[Task]) -> Fitness:
    """Return the fitness of several tasks, whose names must differ."""
    found = tuple(tasks)
    seen = [task.name for task in found]
    for name in sorted(set(seen)):
        if seen.count(name) > 1:
            raise FitnessError(f"two fitness tasks are named {name!r}", where="fitness", fix="Give one a `name:`.")
    return Fitness(found)


Evaluated = tuple[int, Outcome]
