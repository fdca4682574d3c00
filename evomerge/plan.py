"""The plan of a run: what it will do and what that takes, from one measured evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.recipe.build import Setup
from evomerge.types import Score


@dataclass(frozen=True)
class Plan:
    """What is about to be done.

    Attributes:
        experts: (name, largest rank, norm of delta-W) of each.
        space: name of the genome space.
        dimension: numbers in a genome.
        modules: adapted modules.
        tasks: (name, search examples, final examples) of each; 0 where a plain function does not tell.
        founders: genomes scored first.
        generations: at most.
        births: genomes scored in a generation, on average.
        base: fitness of the base model on the search split.
        seconds_each: seconds of one evaluation on the search split, measured on the base.
        seconds: expected for the whole run, the final table included.
        post_merge: the hooks after every merge, with their parameters.
    """

    experts: tuple[tuple[str, int, float], ...]
    space: str
    dimension: int
    modules: int
    tasks: tuple[tuple[str, int, int], ...]
    founders: int
    generations: int
    births: float
    base: float
    seconds_each: float
    seconds: float
    post_merge: tuple[str, ...] = ()

    @property
    def evaluations(self) -> int:
        """Return the number of evaluations on the search split that are expected at most."""
        return round(self.founders + self.generations * self.births)


def make_plan(setup: Setup, base: Score, seconds_each: float) -> Plan:
    """Return the plan, given the base's score and how long it took."""
    recipe, space, experts = setup.recipe, setup.space, setup.experts
    tasks = tuple((task.name, task.examples("search"), task.examples("final")) for task in setup.fitness.tasks)
    founders = len(setup.strategy.init(experts, setup.key.at("generation", 0)).origins)
    births = setup.strategy.births_per_generation()
    # A longer final split makes its evaluations longer in proportion; without counts, take them as equal.
    longer = sum(final for _, _, final in tasks) / (sum(search for _, search, _ in tasks) or 1) or 1.0
    rows = 2 + len(experts.names) + len(recipe.report.baselines)
    evaluations = founders + recipe.stop.generations * births
    return Plan(
        experts=tuple(
            (adapter.name, max(f.A.shape[0] for f in adapter.factors.values()), space.norm(genome))
            for adapter, genome in zip(setup.pool.adapters, experts.genomes, strict=True)
        ),
        space=space.name,
        dimension=space.dimension,
        modules=len(space.modules),
        tasks=tasks,
        founders=founders,
        generations=recipe.stop.generations,
        births=births,
        base=base.value,
        seconds_each=seconds_each,
        seconds=seconds_each * (evaluations + rows * longer),
        post_merge=tuple(spec.text for spec in recipe.post_merge),
    )
