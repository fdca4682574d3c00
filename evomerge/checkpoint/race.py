"""Races: births that some rows show to be worse than others are not scored on the rest.

The experts are scored on all rows of every task. Their outcomes say which rows tell most (item response), and everybody
else is scored on these first, the screen, the same rows in the whole run. From that it is known what to expect on all
rows. Whoever is expected to be at least as good as the best so far goes on, the most promising first, block by block of
the rest, as long as it is expected to be. So whoever is best was scored on all rows, and whoever was not has an
estimate for a score, which says so (``Score.rows``).

Beside those, a share of each generation can go on whatever is expected of them (successive halving), until a sequential
test finds them worse than the best (``selection.racing``).

Rows go through the model in other batches than in one evaluation on all of them, so in bfloat16 an answer that is a tie
may fall the other way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evomerge.checkpoint.scoring import Scored, Scoring, Tick
from evomerge.errors import RunError
from evomerge.evaluation.fitness import Fitness
from evomerge.evaluation.objective import weighted_sum
from evomerge.evaluation.rows import Rows
from evomerge.evaluation.usage import Usage
from evomerge.keys import Key
from evomerge.selection.item_response import Items, anchors, expected, fit
from evomerge.selection.racing import beaten, blocks, survivors
from evomerge.types import Births, Score, State

Examples = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Race:
    """How births are raced, the same in every generation.

    Attributes:
        scoring: on all rows.
        tasks: the name of each task, by the name under which scores report it.
        shares: the weight of each, by the same name.
        experts: their scores on all rows, by digest.
        items: the item-response model of their outcomes, an ability for each task; rows one task after the other.
        parts: the rows of each task in the order in which they are scored: the screen, then block by block.
        keep: the share of births that go on after the screen whatever is expected of them, in [0, 1].
        level: the probability that one of these, as good as the best, is stopped by the test; 0 if nobody is.
    """

    scoring: Scoring
    tasks: Mapping[str, str]
    shares: Mapping[str, float]
    experts: Mapping[str, Score]
    items: Items
    parts: tuple[Rows, ...]
    keep: float
    level: float

    @classmethod
    def of(
        cls,
        scoring: Scoring,
        fitness: Fitness,
        experts: Mapping[str, Score],
        key: Key,
        *,
        screen: float,
        keep: float,
        level: float,
        looks: int,
    ) -> Race:
        """Return the race that the experts' outcomes give: see ``RacingSpec`` of the recipe.

        Of each task's ``n`` rows the ``ceil(screen n)`` most telling are its part of the screen; the others are dealt
        to ``looks`` blocks in a random order.

        Raises:
            FitnessError: a score of an example is not in [0, 1].
        """
        tasks = {task.reported: task.name for task in fitness.tasks}
        counts = {task.name: task.examples("search") for task in fitness.tasks}
        outcomes = [[x for name in tasks for x in score.examples[name]] for score in experts.values()]
        items = fit(np.array(outcomes), [group for group, n in enumerate(counts.values()) for _ in range(n)])
        chosen = set(anchors(items, [math.ceil(round(screen * n, 9)) for n in counts.values()]))
        first: dict[str, tuple[int, ...]] = {}
        rest: dict[str, list[int]] = {}
        start = 0
        for task, n in counts.items():
            order = key.at(task).numpy().permutation(n).tolist()
            first[task] = tuple(row for row in range(n) if start + row in chosen)
            rest[task] = [row for row in order if start + row not in chosen]
            start += n
        deal = blocks({task: len(rows) for task, rows in rest.items()}, looks)
        dealt = [{task: tuple(rest[task][k] for k in places) for task, places in block.items()} for block in deal]
        parts = (first, *(block for block in dealt if any(block.values())))
        return cls(scoring, tasks, fitness.shares(tasks), experts, items, parts, keep, level)

    def score(self, state: State, births: Births, tick: Tick | None = None, limit: int | None = None) -> list[Scored]:
        """Return one ``Scored`` for each birth of the generation after a state, in order.

        Who lives already keeps its score, and so do experts.

        Args:
            state: the one before.
            births: what to score.
            tick: hears of the progress.
            limit: the most new births, as in ``Scoring.score``.
        """
        known = {**self.experts} | {member.digest: member.score for member in state.members}
        heat = _Heat(self, state, births, [digest for digest in births.digests if digest not in known], tick)
        heat.run(limit)
        found = {digest: Scored(score, saved=True) for digest, score in known.items()}
        listed = []
        for digest in births.digests:
            listed.append(_twin(found[digest]) if digest in found else heat.scored(digest))
            found[digest] = listed[-1]
        return listed

    def check(self, state: State) -> None:
        """Raise ``RunError`` if a strategy has made an estimate its best."""
        if state.best and state.best.score.rows:
            raise RunError(
                f"the strategy took {state.best.digest}, which was scored on some rows only, for the best",
                where="racing",
                fix="Let its best be who has the highest value, or say `races = False` in it.",
            )

    def rows(self, name: str, parts: slice) -> list[int]:
        """Return the rows of a reported task in some of the parts, in the order in which they are scored."""
        return [row for part in self.parts[parts] for row in part[self.tasks[name]]]

    @cached_property
    def on(self) -> tuple[Scoring, ...]:
        """Return the scoring on each part."""
        return tuple(self.scoring.on(part) for part in self.parts)

    def expected(self, seen: Examples, parts: int) -> dict[str, float]:
        """Return what to expect of each task on all rows from scores on the first parts, in the order of the race."""
        at: list[int] = []
        scores: list[float] = []
        for group, name in enumerate(self.tasks):
            own = np.flatnonzero(self.items.groups == group)
            at += own[self.rows(name, slice(parts))].tolist()
            scores += seen[name]
        weights = {name: self.items.groups == group for group, name in enumerate(self.tasks)}
        return {name: expected(self.items, (own / own.sum()).tolist(), at, scores)[0] for name, own in weights.items()}

    def in_rows(self, seen: Examples, parts: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[float, ...]]]:
        """Return the rows of the first parts, in their order, and the scores on them."""
        pairs = {name: sorted(zip(self.rows(name, slice(parts)), seen[name], strict=True)) for name in self.tasks}
        return (
            {name: tuple(row for row, _ in own) for name, own in pairs.items()},
            {name: tuple(x for _, x in own) for name, own in pairs.items()},
        )


class _Heat:
    """The race of one generation. Runners are births by digest, with what they scored on each part so far."""

    def __init__(self, race: Race, state: State, births: Births, runners: Sequence[str], tick: Tick | None) -> None:
        self._race = race
        self._births = births
        self._tick = tick
        self._generation = state.generation + 1
        self._places = {digest: row for row, digest in reversed(list(enumerate(births.digests)))}
        self._runs: dict[str, list[Scored]] = {digest: [] for digest in runners}
        self._shifts: dict[int, Mapping[str, float]] = {}
        self._best = state.best.score if state.best else None
        present = [score for digest, score in race.experts.items() if digest in self._places]
        self._bar = max((score.value for score in (*filter(None, [self._best]), *present)), default=-math.inf)
        known = {one.digest: one.score for one in (*state.members, *filter(None, [state.best]))}
        born = [score for digest, score in known.items() if not (score.rows or digest in race.experts)]
        self._whole = [self._in_order(score.examples) for score in born]

    def run(self, limit: int | None) -> None:
        """Let everybody run as far as it is worth."""
        runners = self._advance(list(self._runs), limit)
        kept = survivors([self.score(digest).value for digest in runners], keep=self._race.keep)
        left = [runners[row] for row in kept]
        while left := [digest for digest in left if not (self._complete(digest) or self._beaten(digest))]:
            left = self._advance(left)
        while leader := self._expected_leader():
            self._advance([leader])

    def scored(self, digest: str) -> Scored:
        """Return what is known of a runner in the end."""
        parts = tuple(self._runs[digest])
        outcome = self.score(digest) if self._alive(digest) else parts[-1].outcome
        return Scored(outcome, all(part.saved for part in parts), Usage.of(part.usage for part in parts), parts)

    def _advance(self, digests: list[str], limit: int | None = None) -> list[str]:
        """Score runners who have come equally far on the next part; return who could be scored."""
        if not digests:
            return []
        scoring = self._race.on[len(self._runs[digests[0]])]
        genomes = self._births.genomes[[self._places[digest] for digest in digests]]
        found = scoring.score(genomes, "search", self._generation, self._tick, digests, limit)
        for digest, one in zip(digests, found, strict=True):
            self._runs[digest].append(one)
            if self._complete(digest):
                self._whole.append(self._seen(digest))
                self._shifts.clear()
        return [digest for digest in digests if self._alive(digest)]

    def score(self, digest: str) -> Score:
        """Return a runner's score: after all parts as the fitness gives it, bit for bit, before that an estimate.

        What is expected by item response is shifted by how far off it is, on as many parts, for those who are complete:
        the born ones, or, as long as there are none, the experts.
        """
        race, parts = self._race, [one.outcome for one in self._runs[digest] if isinstance(one.outcome, Score)]
        seen = self._seen(digest)
        rows, examples = race.in_rows(seen, len(parts))
        if self._complete(digest):
            tasks, rows = {name: sum(found) / len(found) for name, found in examples.items()}, {}
        else:
            shift = self._shift(len(parts))
            tasks = {name: value + shift[name] for name, value in race.expected(seen, len(parts)).items()}
        value = weighted_sum(tuple(tasks.values()), [race.shares[name] for name in tasks])
        tokens, truncated = sum(part.tokens for part in parts), sum(part.truncated for part in parts)
        return Score(value, tasks, examples, tokens, truncated, rows)

    def _shift(self, parts: int) -> Mapping[str, float]:
        """Return what is missing, on average, from what is expected after so many parts to what is true, by task."""
        if parts not in self._shifts:
            race = self._race
            known = self._whole or [self._in_order(score.examples) for score in race.experts.values()]
            misses = []
            for one in known:
                seen = {name: scores[: len(race.rows(name, slice(parts)))] for name, scores in one.items()}
                found = race.expected(seen, parts)
                misses.append({name: math.fsum(one[name]) / len(one[name]) - found[name] for name in race.tasks})
            self._shifts[parts] = {name: math.fsum(miss[name] for miss in misses) / len(misses) for name in race.tasks}
        return self._shifts[parts]

    def _expected_leader(self) -> str | None:
        """Return who is expected to be at least as good as the best so far and all who are complete, the first."""
        values = {digest: self.score(digest).value for digest in self._runs if self._alive(digest)}
        bar = max([self._bar, *(value for digest, value in values.items() if self._complete(digest))])
        # An equal value is enough: a strategy may take either for the better one.
        hopeful = [digest for digest, value in values.items() if value >= bar and not self._complete(digest)]
        return max(hopeful, key=values.__getitem__, default=None)

    def _beaten(self, digest: str) -> bool:
        """Return whether the best so far is better, so surely that the runner need not go on.

        What was scored on the screen is known; on the others, in random order, the test is that of ``racing.beaten``.
        """
        race, done = self._race, len(self._runs[digest])
        if not race.level or self._best is None or done < 2:
            return False
        seen, best, weights = {}, {}, {}
        for name, scores in self._seen(digest).items():
            first, n = len(race.rows(name, slice(1))), len(self._best.examples[name])
            for part, own in ((slice(1), scores[:first]), (slice(1, None), scores[first:])):
                rows = race.rows(name, part)
                if rows:
                    seen[f"{name} {part}"] = own
                    best[f"{name} {part}"] = [self._best.examples[name][row] for row in rows]
                    weights[f"{name} {part}"] = race.shares[name] * len(rows) / n
        return beaten(seen, best, weights, level=race.level, looks=len(race.parts) - 2)

    def _alive(self, digest: str) -> bool:
        return isinstance(self._runs[digest][-1].outcome, Score)

    def _complete(self, digest: str) -> bool:
        return self._alive(digest) and len(self._runs[digest]) == len(self._race.parts)

    def _in_order(self, examples: Examples) -> Examples:
        """Return a complete individual's scores in the order of the race."""
        return {name: [examples[name][row] for row in self._race.rows(name, slice(None))] for name in self._race.tasks}

    def _seen(self, digest: str) -> Examples:
        """Return what a runner scored, in the order of the race."""
        scores = [one.outcome for one in self._runs[digest] if isinstance(one.outcome, Score)]
        return {name: [x for one in scores for x in one.examples.get(name, ())] for name in self._race.tasks}


def _twin(one: Scored) -> Scored:
    """Return what is known of somebody whose equal sibling was scored."""
    return one if one.unscored else Scored(one.outcome, saved=True)
