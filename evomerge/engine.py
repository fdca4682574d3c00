"""The loop, the only place where search meets evaluation:

state = latest checkpoint, or founders scored
while not stop(state):
    births   = strategy.ask(state, key)                # variation: merge, mutate
    outcomes = scoring(births, "search")               # the cache first
    state    = strategy.tell(state, births, outcomes)  # selection
    checkpoint(state)                                  # atomic
    publish(state)                                     # best/ is always current
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge.checkpoint.run import RunFolder
from evomerge.checkpoint.scoring import Scored, Scoring
from evomerge.errors import RunError
from evomerge.keys import Key
from evomerge.spaces.base import GenomeSpace
from evomerge.strategies.base import Experts, Strategy, empty_state
from evomerge.types import Births, Failure, Score, State


@dataclass(frozen=True)
class Stop:
    """When the search ends; whichever comes first."""

    generations: int
    patience: int | None = None
    target: float | None = None

    def reason(self, state: State) -> str | None:
        """Return why the search ends here, or ``None`` if it goes on."""
        if self.target is not None and state.best and state.best.score.value >= self.target:
            return f"fitness {self.target:g} reached"
        if self.patience is not None and state.stalled >= self.patience:
            return f"no new best for {state.stalled} generations"
        return f"{self.generations} generations done" if state.generation >= self.generations else None


class Watch(Protocol):
    """Who follows a run: a progress display, a log, a test."""

    def tick(self, done: int, total: int) -> None:
        """Take note that ``done`` of a generation's ``total`` births are scored."""
        ...

    def generation(self, event: Mapping[str, Any]) -> None:
        """Take note of a finished generation (its ledger event)."""
        ...


@dataclass(frozen=True)
class Search:
    """A strategy, the experts it starts from, and what it needs to run."""

    strategy: Strategy
    experts: Experts
    space: GenomeSpace
    scoring: Scoring
    stop: Stop
    key: Key
    publish: Callable[[State], None]

    def run(self, folder: RunFolder, watch: Watch) -> State:
        """Search until a stopping rule holds; each generation ends with a checkpoint. Return the last state."""
        state = folder.latest() or empty_state(self.space.dimension)
        if state.best:
            self.publish(state)
        while state.best is None or self.stop.reason(state) is None:
            state = self._generation(state, folder, watch)
        folder.ledger.record({"event": "stop", "generation": state.generation, "reason": self.stop.reason(state)})
        return state

    def _generation(self, state: State, folder: RunFolder, watch: Watch) -> State:
        number = state.generation + 1
        key = self.key.at("generation", number)
        births = self.strategy.ask(state, key) if state.best else self.strategy.init(self.experts, key)
        folder.store.put_stack(births.genomes)
        scored = self.scoring.score(births.genomes, "search", number, watch.tick)
        self._record_births(folder, number, births, scored)
        state = self.strategy.tell(state, births, [one.outcome for one in scored], key)
        if state.best is None:
            failures = [one.outcome for one in scored if isinstance(one.outcome, Failure)]
            raise RunError(
                f"no founder could be scored; the first failed with {failures[0].kind}: {failures[0].message}",
                where=str(folder.path / "ledger.jsonl"),
                fix="Try the fitness alone: `evomerge score base --base ... --fitness ...`, mend it, start a new run.",
            )
        event = self._summary(state, scored)
        folder.ledger.record(event, {"seconds": round(sum(one.seconds for one in scored), 3)})
        folder.save(state)
        self.publish(state)
        watch.generation(event)
        return state

    def _record_births(self, folder: RunFolder, number: int, births: Births, scored: Sequence[Scored]) -> None:
        rows = zip(births.genomes, births.digests, births.origins, scored, strict=True)
        for row, (genome, digest, origin, one) in enumerate(rows):
            # The row tells equal siblings apart.
            event: dict[str, Any] = {"event": "birth", "generation": number, "row": row, "individual": digest}
            event |= {
                "operator": origin.operator,
                "parents": list(origin.parents),
                "details": dict(origin.details),
            }
            event |= {"norm": self.space.norm(genome), "saved": one.saved}
            if isinstance(one.outcome, Score):
                event |= {"fitness": one.outcome.value, "tasks": dict(one.outcome.tasks)}
            else:
                event |= {"failure": one.outcome.kind, "message": one.outcome.message}
            folder.ledger.record(event, {"seconds": round(one.seconds, 3)})

    def _summary(self, state: State, scored: Sequence[Scored]) -> dict[str, Any]:
        assert state.best is not None, "checked by the caller"
        fitness = [member.score.value for member in state.members]
        examples = [one.outcome.examples.values() for one in scored if isinstance(one.outcome, Score) and not one.saved]
        return {
            "event": "generation",
            "generation": state.generation,
            "state": state.digest,
            "best": state.best.digest,
            "best_fitness": state.best.score.value,
            "mean_fitness": math.fsum(fitness) / len(fitness),
            "best_norm": self.space.norm(state.tensors["best"][0]),
            "births": len(scored),
            "evaluated": sum(not one.saved for one in scored),
            "saved": sum(one.saved for one in scored),
            "failed": sum(isinstance(one.outcome, Failure) for one in scored),
            "examples": sum(len(rows) for task in examples for rows in task),
        }
