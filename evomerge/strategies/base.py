"""The ask/tell protocol, and what every strategy does alike: admit the scored, remember the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from evomerge.keys import Key
from evomerge.types import Births, Individual, Outcome, Score, State


@dataclass(frozen=True)
class Experts:
    """The founders' raw material: the experts' names and their genomes ``[n, d]``."""

    names: tuple[str, ...]
    genomes: torch.Tensor


class Strategy(Protocol):
    """Variation and selection over a frozen state. A strategy never sees a fitness, only outcomes."""

    def init(self, experts: Experts, key: Key) -> Births:
        """Return the founders, to be scored."""
        ...

    def ask(self, state: State, key: Key) -> Births:
        """Return the genomes to score next."""
        ...

    def tell(self, state: State, births: Births, outcomes: Sequence[Outcome], key: Key) -> State:
        """Return the next state, given one outcome for each birth."""
        ...

    def births_per_generation(self) -> float:
        """Return how many genomes ``ask`` returns on average: what a plan is made from."""
        ...


def empty_state(dimension: int) -> State:
    """Return the state before the founders: nobody lives."""
    nobody = torch.empty(0, dimension)
    return State(-1, (), None, 0, {"population": nobody, "best": nobody})


@dataclass(frozen=True)
class Candidates:
    """The living and the newly born together, in that order: individuals and their genomes ``[n, d]``."""

    individuals: tuple[Individual, ...]
    genomes: torch.Tensor

    @classmethod
    def of(cls, state: State, births: Births, outcomes: Sequence[Outcome]) -> Candidates:
        """Join a state's members with the births that could be scored; a genome that already lives is not doubled."""
        individuals = list(state.members)
        rows = [state.population]
        seen = {member.digest for member in individuals}
        for genome, digest, origin, outcome in zip(
            births.genomes, births.digests, births.origins, outcomes, strict=True
        ):
            if isinstance(outcome, Score) and digest not in seen:
                individuals.append(Individual(digest, outcome, origin, state.generation + 1))
                rows.append(genome[None])
                seen.add(digest)
        return cls(tuple(individuals), torch.cat(rows))


def next_state(state: State, candidates: Candidates, survivors: Sequence[int]) -> State:
    """Return the state in which the survivors live; the best ever is kept even if it does not survive."""
    members = tuple(candidates.individuals[i] for i in survivors)
    tensors = {**state.tensors, "population": candidates.genomes[list(survivors)]}
    best, stalled = state.best, state.stalled + 1
    if candidates.individuals:
        top = max(range(len(candidates.individuals)), key=lambda i: (candidates.individuals[i].score.value, -i))
        found = candidates.individuals[top]
        if best is None or found.score.value > best.score.value:
            best, stalled = found, 0
            tensors["best"] = candidates.genomes[top : top + 1]
    return State(state.generation + 1, members, best, stalled, tensors, state.extra)
