"""Evaluate individuals in this process, one after the other, on one loaded base."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import torch

from evomerge.evaluation.ensemble import Combine, score_ensemble
from evomerge.evaluation.fitness import Evaluated, Fitness, WrongType
from evomerge.evaluation.model import Model
from evomerge.spaces.base import GenomeSpace
from evomerge.types import Failure, Outcome, Score, Split


class Evaluator(Protocol):
    """Scores genomes; local and distributed evaluators cannot be told apart by their outcomes."""

    def evaluate(self, genomes: torch.Tensor, fitness: Fitness, split: Split) -> Iterator[Evaluated]:
        """Yield ``(row, outcome)`` for every row of ``genomes`` ``[n, d]``, as soon as each is known."""
        ...

    def together(self, genomes: torch.Tensor, fitness: Fitness, split: Split, combine: Combine) -> Outcome:
        """Return what the individuals ``[k, d]``, the fittest first, score when they answer together."""
        ...


class TimeLimit(BaseException):
    """A fitness took longer than the recipe allows; no ``except Exception`` of the fitness can swallow it."""


class LocalEvaluator:
    """Wears one individual after the other.

    Args:
        model: the loaded base.
        space: decodes genomes.
        time_limit: seconds that one individual may take; ``None`` for no limit.
    """

    def __init__(self, model: Model, space: GenomeSpace, time_limit: float | None = None) -> None:
        self._model = model
        self._space = space
        self._time_limit = time_limit

    def evaluate(self, genomes: torch.Tensor, fitness: Fitness, split: Split) -> Iterator[Evaluated]:
        """Yield ``(row, outcome)`` in the order of the rows."""
        for row, genome in enumerate(genomes):
            self._model.wear(self._space.factors(genome))
            yield row, score(self._model, fitness, split, self._time_limit)
        self._model.wear({})

    def together(self, genomes: torch.Tensor, fitness: Fitness, split: Split, combine: Combine) -> Outcome:
        """Return what the individuals score together; the time limit holds for each."""

        def answer(model: Model, split: Split) -> Score:
            members = (self._space.factors(genome) for genome in genomes)
            return score_ensemble(members, model, fitness, split, combine)

        limit = None if self._time_limit is None else self._time_limit * len(genomes)
        return score(self._model, answer, split, limit)


def score(
    model: Model, fitness: Callable[[Model, Split], Score], split: Split, time_limit: float | None = None
) -> Outcome:
    """Score what the model wears; whatever a fitness file does wrong becomes a ``Failure``, never a number."""
    try:
        with limited(time_limit):
            return fitness(model, split)
    except TimeLimit as error:
        return Failure("time_limit", str(error))
    except WrongType as error:
        return Failure("wrong_type", str(error))
    except FloatingPointError as error:
        return Failure("not_finite", str(error))
    except Exception as error:  # noqa: BLE001 - a user's fitness may raise anything; the run goes on
        return Failure("exception", f"{type(error).__name__}: {error}")


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise ``TimeLimit`` in the block after so many seconds (main thread of a POSIX system only)."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise TimeLimit(f"the fitness took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    outer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *outer)  # who called us may have a limit of their own
