"""The loop, with a fitness that is a plain function of the genome: no model, everything else real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoint.run import RunFolder
from evomerge.checkpoint.scoring import Scoring
from evomerge.engine import Search
from evomerge.errors import RunError
from evomerge.evaluation.fitness import Evaluated, Fitness
from evomerge.experts.adapter import Adapter, Factors
from evomerge.experts.pool import Pool
from evomerge.keys import Key
from evomerge.spaces.subspace import Subspace
from evomerge.stop import Cost, Stop
from evomerge.strategies import STRATEGIES
from evomerge.strategies.base import Context, Experts
from evomerge.types import Failure, Outcome, Score, Split, State, digest_tensor

SPEC = {
    "population": 6,
    "crossover": {"trials": 4, "rate": 1, "merge": {"name": "dare_ties"}},
    "mutation": {"rate": 0.3, "gene_rate": 0.5},
}
BAD = Failure("not_finite", "the fitness is not a finite number: {'t': nan}")


class Plain:
    """An evaluator over a function of the genome, which counts."""

    def __init__(self, function: Callable[[torch.Tensor], Outcome]) -> None:
        self.function = function
        self.seen: list[str] = []

    def evaluate(self, genomes: torch.Tensor, fitness: Fitness, split: Split) -> Iterator[Evaluated]:
        for row, genome in enumerate(genomes):
            self.seen.append(digest_tensor(genome))
            yield row, self.function(genome)

    def together(self, genomes: torch.Tensor, fitness: Fitness, split: Split, combine: str) -> Outcome:
        raise NotImplementedError("no search asks for an ensemble")


class Diary:
    """A watch that writes down what it is told."""

    def __init__(self) -> None:
        self.ticks: list[tuple[int, int]] = []
        self.generations: list[Mapping[str, Any]] = []

    def tick(self, done: int, total: int) -> None:
        self.ticks.append((done, total))

    def generation(self, event: Mapping[str, Any]) -> None:
        self.generations.append(event)


def near_one(genome: torch.Tensor) -> Score:
    rows = tuple(float(x) for x in 1 / (1 + (genome[:3] - 1).abs()))
    return Score(sum(rows) / 3, {"t": sum(rows) / 3}, {"t": rows})


def pool() -> Pool:
    def factors(seed: int) -> Factors:
        random = Key(seed).at("factors").torch()
        return Factors(torch.randn(2, 6, generator=random), torch.randn(5, 2, generator=random), 0.5)

    adapters = [
        Adapter(f"e{i}", Path(f"e{i}"), "base", {name: factors(10 * i + j) for j, name in enumerate("pq")}, str(i), {})
        for i in range(4)
    ]
    return Pool(tuple(adapters), "base", {"p": (5, 6), "q": (5, 6)})


class World:
    """A search in a folder, and all that is written about it."""

    def __init__(self, folder: Path, function: Callable[[torch.Tensor], Outcome] = near_one, **spec: Any) -> None:
        self.path = folder
        self.plain = Plain(function)
        self.diary = Diary()
        self.published: list[str] = []
        self.space = Subspace.of(pool())
        experts = Experts(pool().names, torch.stack([self.space.encode(a) for a in pool().adapters]))
        self.strategy = STRATEGIES["genetic"].bind(**(SPEC | spec))(Context(self.space, experts))

    def run(self, **stop: Any) -> State:
        self.folder = RunFolder(self.path, keep=2)
        search = Search(
            strategy=self.strategy,
            space=self.space,
            scoring=Scoring(self.plain, Fitness(()), self.folder.outcomes, "conditions"),
            objective=lambda outcome: outcome,
            stop=Stop(**{"generations": 4, **stop}),
            each=Cost(examples=1),
            key=Key(3),
            publish=lambda state: self.published.append(state.digest),
        )
        return search.run(self.folder, self.diary)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.folder.ledger.events() if event["event"] == kind]


# When it stops


def test_it_stops_after_the_generations(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.run(generations=3).generation == 3
    (stop,) = world.events("stop")
    assert (stop["generation"], stop["reason"]) == (3, "3 generations done")
    generations = world.events("generation")
    assert stop["examples"] == sum(event["examples"] for event in generations) > 0
    assert stop["tokens"] == sum(event["tokens"] for event in generations)


def test_it_stops_when_the_target_is_reached(tmp_path: Path) -> None:
    world = World(tmp_path)
    state = world.run(generations=50, target=0.6)
    assert state.best is not None and state.best.score.value >= 0.6
    assert state.generation < 50
    earlier = [event["best_fitness"] for event in world.diary.generations[:-1]]
    assert all(best < 0.6 for best in earlier)
    assert world.events("stop")[0]["reason"] == "fitness 0.6 reached"


def test_founders_that_are_good_enough_end_the_search(tmp_path: Path) -> None:
    assert World(tmp_path).run(target=0.01).generation == 0


def test_it_stops_when_nothing_better_comes(tmp_path: Path) -> None:
    world = World(tmp_path, lambda genome: Score(1.0))
    assert world.run(generations=50, patience=3).generation == 3
    assert world.events("stop")[0]["reason"] == "no new best for 3 generations"


# What it writes


def test_the_ledger_tells_each_generation_in_order(tmp_path: Path) -> None:
    world = World(tmp_path)
    state = world.run()
    events = world.folder.ledger.events()
    assert events[-1]["event"] == "stop"
    told: list[dict[str, Any]] = []
    number = 0
    for event in events[:-1]:
        assert event["generation"] == number
        told.append(event)
        if event["event"] == "generation":
            births = told[:-1]
            assert {birth["event"] for birth in births} == {"birth"}
            assert len(births) == event["births"] == event["evaluated"] + event["saved"]
            assert sum(birth["saved"] for birth in births) == event["saved"]
            assert event["examples"] == 3 * event["evaluated"]
            told, number = [], number + 1
    assert number == 5
    assert world.events("generation") == world.diary.generations
    last = world.events("generation")[-1]
    assert state.best is not None
    assert (last["state"], last["best"], last["best_fitness"]) == (
        state.digest,
        state.best.digest,
        state.best.score.value,
    )
    assert last["mean_fitness"] == pytest.approx(sum(m.score.value for m in state.members) / len(state.members))


def test_every_birth_tells_its_norm_of_delta_w_and_its_scores(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run()
    for birth in world.events("birth"):
        genome = world.folder.store.get(birth["individual"])
        deltas = torch.cat([world.space.delta(genome, module).flatten() for module in world.space.modules])
        assert birth["norm"] == pytest.approx(float(deltas.norm()), rel=1e-5)
        assert birth["fitness"] == near_one(genome).value
        assert birth["tasks"] == {"t": birth["fitness"]}


def test_every_generation_is_saved_and_published(tmp_path: Path) -> None:
    world = World(tmp_path)
    state = world.run()
    assert world.published == [event["state"] for event in world.events("generation")]
    latest = world.folder.latest()
    assert latest is not None and latest.digest == state.digest
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["000003.json", "000004.json"]


# What it does not do twice


def test_nothing_is_evaluated_twice(tmp_path: Path) -> None:
    # Without noise the same parents bear the same child again.
    world = World(tmp_path, crossover={"trials": 8, "rate": 1, "weights": "uniform"}, mutation={"rate": 0})
    world.run(generations=8)
    assert len(set(world.plain.seen)) == len(world.plain.seen)
    generations = world.events("generation")
    assert sum(event["evaluated"] for event in generations) == len(world.plain.seen) == len(world.diary.ticks)
    assert sum(event["saved"] for event in generations) > 0
    births = [event for event in world.events("birth") if event["saved"]]
    assert len(births) == sum(event["saved"] for event in generations)  # equal siblings are told one by one


def test_a_search_that_is_over_evaluates_nothing_when_run_again(tmp_path: Path) -> None:
    first = World(tmp_path)
    state = first.run()
    again = World(tmp_path)
    assert again.run().digest == state.digest
    assert again.plain.seen == []
    assert again.folder.ledger.digest() == first.folder.ledger.digest()


def test_more_generations_continue_the_same_search(tmp_path: Path) -> None:
    World(tmp_path / "parts").run(generations=2)
    parts = World(tmp_path / "parts").run(generations=5)
    assert parts.digest == World(tmp_path / "whole").run(generations=5).digest


# What can go wrong


def test_who_cannot_be_scored_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    def moody(genome: torch.Tensor) -> Outcome:
        return BAD if int(digest_tensor(genome), 16) % 3 == 0 else near_one(genome)

    world = World(tmp_path, moody)
    state = world.run(generations=6)
    assert state.generation == 6
    failures = [birth for birth in world.events("birth") if "failure" in birth]
    assert failures
    for birth in failures:
        assert (birth["failure"], birth["message"]) == (BAD.kind, BAD.message)
        assert int(birth["individual"], 16) % 3 == 0
        assert "fitness" not in birth and birth["norm"] > 0
    assert sum(event["failed"] for event in world.events("generation")) == len(failures)
    assert not {member.digest for member in state.members} & {birth["individual"] for birth in failures}


def test_founders_of_whom_none_can_be_scored_end_the_run(tmp_path: Path) -> None:
    world = World(tmp_path, lambda genome: BAD)
    with pytest.raises(RunError) as caught:
        world.run()
    assert caught.value.cause == f"no founder could be scored; the first failed with not_finite: {BAD.message}"
    assert caught.value.where == str(tmp_path / "ledger.jsonl")
    assert "Try the fitness alone: `evomerge score base" in caught.value.fix
    assert len(world.events("birth")) == 6  # told before the end
    assert world.folder.latest() is None


def test_a_damaged_snapshot_is_told_and_the_one_before_continues(tmp_path: Path) -> None:
    World(tmp_path / "damaged").run(generations=2)
    (tmp_path / "damaged" / "snapshots" / "000002.json").write_text("{")
    damaged = World(tmp_path / "damaged")
    state = damaged.run(generations=4)
    assert state.digest == World(tmp_path / "whole").run(generations=4).digest
    assert [event["file"] for event in damaged.events("snapshot_skipped")] == ["000002.json"]
