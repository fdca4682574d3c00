"""A strategy to copy: mutants of the best, one generation after the other.

In a recipe: `strategy: {name: populations/hill_climb.py, sigma: 0.2}`. Check your own with
`evomerge.testing.StrategySuite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt

from evomerge import Births, Candidates, Context, Key, Origin, Outcome, State, next_state


@dataclass(frozen=True)
class strategy:  # noqa: N801 - the name that a recipe looks for
    """Hill climbing: noise on the best genome, in proportion to its own size.

    Attributes:
        population: births a generation, and the most members that live.
        sigma: size of the noise, relative to the best genome's entries.
    """

    context: Context  # the experts and the coordinates; nothing here knows the fitness
    _: KW_ONLY
    population: Annotated[int, Ge(1)] = 8
    sigma: Annotated[float, Gt(0)] = 0.1

    def init(self, key: Key) -> Births:  # noqa: ARG002 - nothing is drawn for the experts
        """Return the founders."""
        return self.context.expert_births()

    def ask(self, state: State, key: Key) -> Births:
        """Return what to score next: the same for the same state and key, however often it is asked."""
        best = state.tensors["best"]
        shape = (self.population, best.shape[1])
        noise = torch.randn(shape, generator=key.at("noise").torch())
        assert state.best is not None, "the search ends without one"
        return Births(best * (1 + self.sigma * noise), (Origin("climb", (state.best.digest,)),) * self.population)

    def tell(self, state: State, births: Births, outcomes: Sequence[Outcome], key: Key) -> State:  # noqa: ARG002
        """Return the next state: whoever could be scored competes with the living; the fittest stay."""
        candidates = Candidates.of(state, births, outcomes)
        order = sorted(range(len(candidates.individuals)), key=lambda row: -candidates.fitness[row])
        return next_state(state, candidates, order[: self.population])

    def births_per_generation(self) -> float:
        """Return how many births ``ask`` returns: what the plan of a run is made from."""
        return self.population
