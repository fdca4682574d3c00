"""Genetic search over merges (GENOME, Zhang et al. 2025, "Nature-inspired population-based evolution of LLMs").

One generation, with N members:

    children  <- `trials` times, with probability `rate`: merge(parents; w_i = f_i / sum f), parents drawn by fitness
    mutants   <- each member and child, with probability `rate`: x + sigma N(0, 1) . Bernoulli(gene_rate)
    scored    <- evaluate(children + mutants)
    members   <- survivors(members + scored), at most N, the elites among them

Differs from the authors' code: merges act on delta-weights (in the space ``subspace``), not on A and B separately;
elites are never zero; mutation noise can be relative to each tensor's own scale; founders can hold the experts
themselves; nothing is changed in place; a birth that cannot be scored dies instead of living on with a made-up number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch

from evomerge.errors import RecipeError
from evomerge.keys import Key
from evomerge.strategies.base import Candidates, Experts, next_state
from evomerge.types import Births, Origin, Outcome, Segment, State, digest_tensor

Merge = Callable[..., torch.Tensor]
Weighting = Literal["fitness", "uniform", "random"]


@dataclass(frozen=True)
class Founders:
    """Who lives at the start: the experts, merges of expert pairs, or both."""

    source: Literal["experts", "pairs", "both"]
    weights: Weighting
    merge: Merge


@dataclass(frozen=True)
class Crossover:
    """How often and how parents are merged into a child."""

    trials: int
    rate: float
    parents: int
    weights: Weighting
    select: Callable[..., tuple[int, ...]]
    merge: Merge


@dataclass(frozen=True)
class Mutation:
    """How often an individual spawns a mutant, and how the mutant differs."""

    rate: float
    mutate: Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Genetic:
    """GENOME's genetic algorithm with its operators bound.

    Attributes:
        population: the most members that live, N.
        segments: the genome's segments, for operators that work tensor by tensor.
        survive: picks the rows that live on.
        post_merge: names of the hooks that the merges end with, for the record of a birth.
    """

    population: int
    segments: tuple[Segment, ...]
    founders: Founders
    crossover: Crossover
    mutation: Mutation
    survive: Callable[..., tuple[int, ...]]
    post_merge: tuple[str, ...] = ()

    def init(self, experts: Experts, key: Key) -> Births:
        """Return the experts, then merges of shuffled expert pairs until the population or the pairs are used up.

        Raises:
            RecipeError: pairs alone are asked of a single expert.
        """
        if self.founders.source == "pairs" and len(experts.names) < 2:
            raise RecipeError(
                f"founders of source 'pairs' need at least 2 experts; the pool has {len(experts.names)}",
                where="strategy.founders.source",
                fix="Use `source: experts`, or add experts.",
            )
        rows: list[torch.Tensor] = []
        origins: list[Origin] = []
        if self.founders.source != "pairs":
            rows += list(experts.genomes)
            origins += [Origin("expert", details={"name": name}) for name in experts.names]
        for number, pair in enumerate(self._pairs(len(experts.names), self.population - len(rows), key)):
            at = key.at("founder", number)
            weights = self._weights(self.founders.weights, np.ones(2), at.at("weights"))
            rows.append(self.founders.merge(experts.genomes[list(pair)], weights, self.segments, at.at("merge")))
            digests = tuple(digest_tensor(experts.genomes[i]) for i in pair)
            names = [experts.names[i] for i in pair]
            origins.append(Origin("pair", digests, {"names": names, "weights": weights.tolist(), **self._hooks}))
        return Births(torch.stack(rows), tuple(origins))

    def ask(self, state: State, key: Key) -> Births:
        """Return this generation's children, then its mutants."""
        fitness = np.array([member.score.value for member in state.members])
        rows: list[torch.Tensor] = []
        origins: list[Origin] = []
        for trial in range(self.crossover.trials if len(state.members) > 1 else 0):
            at = key.at("crossover", trial)
            if at.at("rate").numpy().random() < self.crossover.rate:
                child, origin = self._child(state, fitness, at)
                rows.append(child)
                origins.append(origin)
        parents = [*state.population, *rows]
        digests = [*(member.digest for member in state.members), *(digest_tensor(row) for row in rows)]
        for number, (parent, digest) in enumerate(zip(parents, digests, strict=True)):
            at = key.at("mutation", number)
            if at.at("rate").numpy().random() < self.mutation.rate:
                rows.append(self.mutation.mutate(parent, self.segments, at.at("noise")))
                origins.append(Origin("mutation", (digest,)))
        return Births(torch.stack(rows) if rows else state.population[:0], tuple(origins))

    def tell(self, state: State, births: Births, outcomes: Sequence[Outcome], key: Key) -> State:
        """Return the state in which the survivors of members and births live."""
        candidates = Candidates.of(state, births, outcomes)
        fitness = np.array([individual.score.value for individual in candidates.individuals])
        survivors = self.survive(fitness, self.population, key.at("survivors")) if len(fitness) else ()
        return next_state(state, candidates, survivors)

    def births_per_generation(self) -> float:
        """Return the expected number of children and mutants."""
        children = self.crossover.trials * self.crossover.rate
        return children + self.mutation.rate * (self.population + children)

    def _child(self, state: State, fitness: np.ndarray, key: Key) -> tuple[torch.Tensor, Origin]:
        count = min(self.crossover.parents, len(state.members))
        chosen = self.crossover.select(fitness, count, key.at("parents"))
        weights = self._weights(self.crossover.weights, fitness[list(chosen)], key.at("weights"))
        child = self.crossover.merge(state.population[list(chosen)], weights, self.segments, key.at("merge"))
        parents = tuple(state.members[i].digest for i in chosen)
        return child, Origin("crossover", parents, {"weights": weights.tolist(), **self._hooks})

    @property
    def _hooks(self) -> dict[str, list[str]]:
        return {"post_merge": list(self.post_merge)} if self.post_merge else {}

    @staticmethod
    def _weights(kind: Weighting, fitness: np.ndarray, key: Key) -> torch.Tensor:
        """Return weights that sum to 1; fitness weights that cannot be normalised become uniform."""
        raw = {"fitness": fitness, "uniform": np.ones(len(fitness))}.get(kind)
        if raw is None:
            raw = key.numpy().random(len(fitness))
        if raw.min() < 0 or raw.sum() <= 0:
            raw = np.ones(len(fitness))
        return torch.from_numpy(raw / raw.sum()).float()

    def _pairs(self, experts: int, wanted: int, key: Key) -> list[tuple[int, int]]:
        if self.founders.source == "experts":
            return []
        pairs = list(combinations(range(experts), 2))
        order = key.at("pairs").numpy().permutation(len(pairs))
        return [pairs[i] for i in order][: max(0, wanted)]
