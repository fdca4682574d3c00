"""Score genomes through the outcome cache: nothing is evaluated twice, and a kill loses one individual at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from evomerge.checkpoint.outcomes import OutcomeCache
from evomerge.evaluation.fitness import Fitness
from evomerge.evaluation.local import Evaluator
from evomerge.types import Outcome, Split, digest_json, digest_tensor

# Called with (done, total) after each outcome of a batch.
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Scored:
    """An outcome, whether an earlier generation or an equal sibling had it already, and what it took.

    Attributes:
        saved: the same in an interrupted and in an undisturbed run: an outcome that this generation itself
            evaluated before the interruption is not saved.
        seconds: wall time of the evaluation, 0 where the cache had it.
    """

    outcome: Outcome
    saved: bool
    seconds: float


class Scoring:
    """An evaluator behind the outcome cache of a run.

    Args:
        evaluator: local or distributed.
        fitness: what is measured.
        cache: outcomes on disk.
        conditions: digest of all that an outcome depends on beside genome and split.
    """

    def __init__(self, evaluator: Evaluator, fitness: Fitness, cache: OutcomeCache, conditions: str) -> None:
        self._evaluator = evaluator
        self._fitness = fitness
        self._cache = cache
        self._conditions = conditions

    def score(self, genomes: torch.Tensor, split: Split, generation: int, tick: Tick | None = None) -> list[Scored]:
        """Return one ``Scored`` for each row of ``genomes`` ``[n, d]``, in order."""
        keys = [digest_json([digest_tensor(row), split, self._conditions]) for row in genomes]
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        missing = [row for key, row in sorted(first.items(), key=lambda item: item[1]) if not self._cache.get(key)]
        seconds = dict.fromkeys(range(len(keys)), 0.0)
        done = len(keys) - len(missing)
        start = time.perf_counter()
        for place, outcome in self._evaluator.evaluate(genomes[missing], self._fitness, split) if missing else ():
            row = missing[place]
            seconds[row] = time.perf_counter() - start
            self._cache.put(keys[row], outcome, generation)
            done += 1
            if tick:
                tick(done, len(keys))
            start = time.perf_counter()
        return [self._scored(key, row != first[key], generation, seconds[row]) for row, key in enumerate(keys)]

    def _scored(self, key: str, twin: bool, generation: int, seconds: float) -> Scored:
        cached = self._cache.get(key)
        assert cached is not None, "every key was evaluated above"
        return Scored(cached.outcome, twin or cached.born < generation, seconds)
