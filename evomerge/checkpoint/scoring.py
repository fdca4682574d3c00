"""Score genomes through the outcome cache: nothing is evaluated twice, and a kill loses one group at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from evomerge.checkpoint.outcomes import OutcomeCache
from evomerge.evaluation.ensemble import Combine
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.fitness import Fitness
from evomerge.evaluation.rows import Rows, on_rows
from evomerge.evaluation.usage import NOTHING, Usage
from evomerge.types import Failure, Outcome, Split, digest_json, digest_rows

# Called with (done, total) after each group: evaluations, without what was known before.
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Scored:
    """An outcome, whether an earlier generation or an equal sibling had it already, and what it took.

    Attributes:
        saved: the same in an interrupted and in an undisturbed run: an outcome that this generation itself
            evaluated before the interruption is not saved.
        usage: what the evaluation took of the machine, nothing where the cache had it.
        parts: in a race, what it scored on one block of rows after the other.
    """

    outcome: Outcome
    saved: bool
    usage: Usage = NOTHING
    parts: tuple[Scored, ...] = ()

    @property
    def unscored(self) -> bool:
        """Return whether the budget ended before it could be scored."""
        return isinstance(self.outcome, Failure) and self.outcome.kind == "budget"

    @property
    def measured(self) -> tuple[Outcome, ...]:
        """Return what this generation evaluated for it: the outcome, in a race one for each part, but for the saved."""
        return tuple(part.outcome for part in self.parts or (self,) if not part.saved)


_UNSCORED = Scored(Failure("budget", "the budget ended before it"), saved=False)


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

    def on(self, rows: Rows) -> Scoring:
        """Return the scoring on some rows of the search split, behind the same cache."""
        conditions = digest_json([self._conditions, {task: list(numbers) for task, numbers in rows.items()}])
        return Scoring(self._evaluator, on_rows(self._fitness, rows), self._cache, conditions)

    def score(
        self,
        genomes: torch.Tensor,
        split: Split,
        generation: int,
        tick: Tick | None = None,
        digests: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[Scored]:
        """Return one ``Scored`` for each row of ``genomes`` ``[n, d]``, in order.

        Args:
            genomes: what to score.
            split: on which rows.
            generation: in which this is asked for.
            tick: hears of the progress.
            digests: of the genomes, if they are known.
            limit: the most new evaluations; births after the last that fits are not scored.
        """
        keys = [digest_json([digest, split, self._conditions]) for digest in digests or digest_rows(genomes)]
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        # What an interrupted run of this generation has scored counts as new, so that the limit falls where it did.
        new = [key for key in sorted(first, key=first.__getitem__) if not self._known_before(key, generation)]
        unscored = set() if limit is None else set(new[limit:])
        asked = [first[key] for key in new if key not in unscored]
        # Formed before anything is known, and scored as a whole, so that who goes through the base together
        # does not depend on where a run was interrupted.
        size = self._evaluator.group
        groups = [asked[start : start + size] for start in range(0, len(asked), size)]
        left = [group for group in groups if not all(self._cache.get(keys[row]) for row in group)]
        used: dict[int, Usage] = {}
        stacks = (genomes[group] for group in left)
        for number, measured in self._evaluator.evaluate(stacks, self._fitness, split):
            for row, outcome, usage in zip(left[number], measured.outcomes, measured.usages, strict=True):
                self._cache.put(keys[row], outcome, generation)
                used[row] = usage
            if tick:
                tick(len(used), sum(map(len, left)))
        return [
            _UNSCORED if key in unscored else self._scored(key, row != first[key], generation, used.get(row, NOTHING))
            for row, key in enumerate(keys)
        ]

    def together(self, genomes: torch.Tensor, split: Split, generation: int, combine: Combine) -> Scored:
        """Return what individuals ``[k, d]``, the fittest first, score when they answer together."""
        key = digest_json(["ensemble", combine, digest_rows(genomes), split, self._conditions])
        used = NOTHING
        if self._cache.get(key) is None:
            measured = self._evaluator.together(genomes, self._fitness, split, combine)
            self._cache.put(key, measured.outcomes[0], generation)
            used = measured.usages[0]
        return self._scored(key, twin=False, generation=generation, usage=used)

    def _known_before(self, key: str, generation: int) -> bool:
        cached = self._cache.get(key)
        return cached is not None and cached.born < generation

    def _scored(self, key: str, twin: bool, generation: int, usage: Usage) -> Scored:
        cached = self._cache.get(key)
        assert cached is not None, "every key was evaluated above"
        return Scored(cached.outcome, twin or cached.born < generation, usage)
