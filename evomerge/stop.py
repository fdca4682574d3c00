"""When a search ends, and what it has spent; whichever rule holds first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from evomerge.checkpoint.ledger import Ledger
from evomerge.types import Outcome, Score, State

SPENDING = ("references", "generation")
"""The events of the ledger that say what was spent."""


@dataclass(frozen=True)
class Cost:
    """Examples scored, tokens through the model, seconds of evaluation."""

    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Cost:
        """Return what evaluations cost, their seconds apart; a task that has only a total counts as one example."""
        scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
        examples = sum(max(1, len(rows)) for score in scores for rows in score.examples.values())
        return cls(examples, sum(score.tokens for score in scores))


def spent(ledger: Ledger, generation: int) -> Cost:
    """Return what a run has spent up to a generation, resumed or not."""
    events = [
        (event, clock)
        for event, clock in zip(ledger.events(), ledger.clocks(), strict=True)
        if event["event"] in SPENDING and event.get("generation", -1) <= generation
    ]
    return Cost(
        sum(event["examples"] for event, _ in events),
        sum(event["tokens"] for event, _ in events),
        round(sum(clock.get("seconds", 0.0) for _, clock in events), 3),
    )


@dataclass(frozen=True)
class Stop:
    """When the search ends; whichever comes first.

    A budget of examples or tokens is never exceeded by more than what one evaluation's cost varies: of the last
    generation only so many births are scored as fit.
    """

    generations: int | None = None
    patience: int | None = None
    target: float | None = None
    examples: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def reason(self, state: State, spent: Cost, each: Cost) -> str | None:
        """Return why the search ends here, or ``None`` if it goes on."""
        if self.target is not None and state.best and state.best.score.value >= self.target:
            return f"fitness {self.target:g} reached"
        if self.patience is not None and state.stalled >= self.patience:
            return f"no new best for {state.stalled} generations"
        if self.generations is not None and state.generation >= self.generations:
            return f"{self.generations} generations done"
        for unit, budget, used, one in self._budgets(spent, each):
            if used + one > budget:
                return f"budget of {budget:g} {unit} spent"
        return None

    def fitting(self, spent: Cost, each: Cost) -> int | None:
        """Return how many more evaluations fit into the budgets; ``None`` for any number."""
        counted = [(budget - used) / one for _, budget, used, one in self._budgets(spent, each) if one]
        return max(0, min(math.floor(count) for count in counted)) if counted else None

    def _budgets(self, spent: Cost, each: Cost) -> list[tuple[str, float, float, float]]:
        """Return (unit, budget, what is spent, what one more evaluation takes) for every budget that is set."""
        rows = (
            ("examples", self.examples, spent.examples, each.examples),
            ("tokens", self.tokens, spent.tokens, each.tokens),
            # A clock is read between generations only: what is scored should not depend on it.
            ("seconds", self.seconds, spent.seconds, 0.0),
        )
        return [(unit, budget, used, one) for unit, budget, used, one in rows if budget is not None]
