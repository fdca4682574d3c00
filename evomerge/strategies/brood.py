"""Births one by one, each a merge of two parents or a mutant of one: what archives of diverse genomes do alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from evomerge.keys import Key
from evomerge.strategies.base import Context
from evomerge.strategies.genetic import MutationSpec
from evomerge.types import Births, Origin, Segment, State
from evomerge.variation.mutate import MUTATIONS

Pair = Callable[[Key], tuple[int, int]]
Cross = Callable[[torch.Tensor, Key], tuple[torch.Tensor, Mapping[str, Any]]]


@dataclass(frozen=True)
class Brood:
    """Exactly ``size`` births a generation: a mutant with the mutation's rate, else a child.

    Attributes:
        context: the run's.
        size: births a generation.
        mutation: how mutants are made; one who lives alone has nothing but mutants.
        cross: ``(parents [2, d], key) -> (child [d], details of its origin)``.
    """

    context: Context
    size: int
    mutation: MutationSpec
    cross: Cross

    def born(self, state: State, pair: Pair, key: Key) -> Births | None:
        """Return the births of a generation; ``None`` if one lives alone and does not mutate.

        Args:
            state: whose members are the parents.
            pair: draws the rows of two different parents; the first alone has a mutant.
            key: the generation's.
        """
        if len(state.members) == 1 and not self.mutation.rate:
            return None
        genomes = torch.empty(self.size, state.population.shape[1])
        origins = []
        for number in range(self.size):
            genomes[number], origin = self._birth(state, pair, key.at("birth", number))
            origins.append(origin)
        return Births(genomes, tuple(origins))

    def _birth(self, state: State, pair: Pair, key: Key) -> tuple[torch.Tensor, Origin]:
        alone = len(state.members) == 1
        rows = (0, 0) if alone else pair(key.at("parents"))
        parents = tuple(state.members[row].digest for row in rows)
        if alone or key.at("rate").numpy().random() < self.mutation.rate:
            mutant = self._mutate(state.population[rows[0]], self.context.segments, key.at("noise"))
            return mutant, Origin("mutation", parents[:1])
        child, details = self.cross(state.population[list(rows)], key.at("merge"))
        return child, Origin("crossover", parents, {**details, **self.context.hooks_record()})

    @cached_property
    def _mutate(self) -> Callable[[torch.Tensor, tuple[Segment, ...], Key], torch.Tensor]:
        return MUTATIONS[self.mutation.name].bind(**self.mutation.parameters)
