"""The hybrid: individuals move and are scored again, then breed; everybody's memory stays with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import Problems
from evomerge.keys import Key
from evomerge.strategies import STRATEGIES
from evomerge.strategies.base import Strategy, empty_state
from evomerge.testing.landscapes import quadratic
from evomerge.types import Births, Failure, Outcome, State, digest_rows, digest_tensor

KEY = Key(7)
DEAD = Failure("exception", "ValueError: dead")
LANDSCAPE = quadratic(2)
MOVE = {"inertia": 0.2, "cognitive": 0.2, "social": 0.2, "repel": 0.1}


@dataclass(frozen=True)
class Turn:
    before: State
    births: Births
    outcomes: list[Outcome]
    after: State


def hybrid(**parameters: Any) -> Strategy:
    return STRATEGIES["hybrid"].bind(**parameters)(LANDSCAPE.context)


def turns(
    strategy: Strategy, count: int, dies: Callable[[int, int], bool] = lambda generation, row: False
) -> list[Turn]:
    """Return the founding, and so many generations more; ``dies`` tells who of the births cannot be scored."""
    state, found = empty_state(LANDSCAPE.context.experts.genomes.shape[1]), []
    for number in range(count + 1):
        births = strategy.ask(state, KEY.at(number)) if state.best else strategy.init(KEY.at(number))
        outcomes = [DEAD if dies(number, i) else LANDSCAPE.score(row) for i, row in enumerate(births.genomes)]
        after = strategy.tell(state, births, outcomes, KEY.at(number))
        found.append(Turn(state, births, outcomes, after))
        state = after
    return found


def value(row: torch.Tensor) -> float:
    return LANDSCAPE.score(row).value


def operators(births: Births) -> set[str]:
    return {origin.operator for origin in births.origins}


def test_moves_and_births_take_turns() -> None:
    found = turns(hybrid(population=14), 6)
    assert operators(found[0].births) == {"expert", "pair"}
    for number, turn in enumerate(found[1:], 1):
        if number % 2:
            assert operators(turn.births) == {"move"}
            assert len(turn.births.origins) == len(turn.before.members)
        else:
            assert operators(turn.births) == {"crossover", "mutation"}
            assert {digest for o in turn.births.origins for digest in o.parents} <= {
                *(member.digest for member in turn.before.members),
                *turn.births.digests,
            }


def test_whoever_moved_is_scored_where_it_is_now() -> None:
    for turn in turns(hybrid(population=14), 6)[1::2]:
        assert tuple(member.digest for member in turn.after.members) == turn.births.digests
        assert not {member.digest for member in turn.after.members} & {member.digest for member in turn.before.members}
        assert [member.score.value for member in turn.after.members] == [value(row) for row in turn.after.population]


def test_a_move_is_the_published_update() -> None:
    """Written again in float64, with the memory that is in the state; that memory is tested below."""
    for number, turn in enumerate(turns(hybrid(population=14), 7)[1::2]):
        tensors = {name: stack.double().numpy() for name, stack in turn.before.tensors.items()}
        x, v, p = tensors["population"], tensors["velocities"], tensors["personal"]
        for i, (row, velocity) in enumerate(zip(turn.births.genomes, turn.after.tensors["velocities"], strict=True)):
            r = KEY.at(2 * number + 1, "move", i).numpy().random(4) * list(MOVE.values())
            expected = r[0] * v[i] + r[1] * (p[i] - x[i]) + r[2] * (tensors["best"][0] - x[i])
            expected = (expected - r[3] * (tensors["worst"][0] - x[i])) / r.sum()
            np.testing.assert_allclose(velocity, expected, atol=1e-6)
            np.testing.assert_allclose(row, x[i] + 0.5 * 0.95**number * expected, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"move": {"inertia": 0.6}},
        {"move": {"cognitive": 0.0}},
        {"move": {"social": 0.5}},
        {"move": {"repel": 0.0}},
        {"move": {"step": 0.9}},
        {"move": {"step_decay": 0.5}},
        {"move": {"step_floor": 0.5}},
        {"move": {"start": "zero"}},
        {"crossover": {"rate": 0.2}},
        {"mutation": {"rate": 0.0}},
        {"survivors": {"name": "truncation"}},
    ],
    ids=str,
)
def test_every_part_changes_the_search(change: dict[str, Any]) -> None:
    one, other = (turns(hybrid(population=10, **parameters), 6)[-1].after for parameters in ({}, change))
    assert one.digest != other.digest


def test_naming_one_coefficient_keeps_the_others_at_genome_plus_s() -> None:
    move = hybrid(move={"inertia": 0.7}).move
    assert (move.inertia, move.cognitive, move.social, move.repel) == (0.7, 0.2, 0.2, 0.1)
    assert (move.step, move.step_decay, move.step_floor) == (0.5, 0.95, 0)


def test_memory_stays_with_its_owner() -> None:
    """Personal bests are followed by hand; survivors change their rows, newborns start afresh."""
    found = turns(hybrid(population=12), 8)
    personal = {m.digest: (m.score.value, m.digest) for m in found[0].after.members}
    lowest, improved, dropped = min(value(row) for row in found[0].births.genomes), 0, 0
    for number, turn in enumerate(found[1:], 1):
        now: dict[str, tuple[float, str]] = {}
        pairs = zip(turn.before.members, turn.births.digests, strict=False)
        moved = {new: old.digest for old, new in pairs} if number % 2 else {}
        known = dict(zip((m.digest for m in turn.before.members), turn.before.tensors["velocities"], strict=True))
        for i, member in enumerate(turn.after.members):
            own = (member.score.value, member.digest)
            old = personal.get(moved.get(member.digest, member.digest))
            now[member.digest] = old if old and old[0] >= own[0] else own
            improved += bool(moved) and now[member.digest] == own
            if not moved:
                expected = known.get(member.digest, torch.zeros_like(turn.after.population[0]))
                assert torch.equal(turn.after.tensors["velocities"][i], expected)
        dropped += len(turn.before.members) > sum(m.digest in known for m in turn.after.members) > 0
        personal = now
        assert digest_rows(turn.after.tensors["personal"]) == tuple(digest for _, digest in now.values())
        remembered = [(one["fitness"], one["digest"]) for one in turn.after.extra["personal"]]
        assert remembered == list(now.values())
        lowest = min(lowest, *(value(row) for row in turn.births.genomes))
        assert turn.after.extra["worst"] == lowest == value(turn.after.tensors["worst"][0])
    assert improved and dropped  # both have happened


def test_the_population_grows_up_to_its_bound_and_keeps_its_elites() -> None:
    found = turns(hybrid(population=14, initial=9, survivors={"name": "roulette", "elites": 3}), 8)
    sizes = [len(turn.after.members) for turn in found]
    assert sizes[0] == sizes[1] == 9 < sizes[2] and sizes[-1] == 14 == max(sizes)
    assert sizes == sorted(sizes)
    for turn in found[2::2]:
        everyone = {m.digest: m.score.value for m in turn.before.members}
        everyone |= {digest: value(row) for digest, row in zip(turn.births.digests, turn.births.genomes, strict=True)}
        fittest = sorted(everyone, key=everyone.__getitem__)[-3:]
        assert set(fittest) <= {member.digest for member in turn.after.members}
    crowded = turns(hybrid(population=5, initial=3), 1)
    assert [len(crowded[0].births.origins), len(crowded[0].after.members), len(crowded[1].births.origins)] == [8, 5, 5]


def test_whose_move_cannot_be_scored_stays_at_rest() -> None:
    turn = turns(hybrid(population=10), 3, lambda generation, row: generation == 3 and row in (0, 5))[-1]
    for i, (old, new) in enumerate(zip(turn.before.members, turn.after.members, strict=True)):
        if i in (0, 5):
            assert new == old and torch.equal(turn.after.population[i], turn.before.population[i])
            assert torch.equal(turn.after.tensors["personal"][i], turn.before.tensors["personal"][i])
            assert turn.after.extra["personal"][i] == turn.before.extra["personal"][i]
            assert not turn.after.tensors["velocities"][i].any()
        else:
            assert new.digest == turn.births.digests[i]
            assert turn.after.tensors["velocities"][i].any()


def test_generations_that_fail_as_a_whole_lose_nobody() -> None:
    found = turns(hybrid(population=10), 4, lambda generation, row: generation in (1, 2))
    founded = found[0].after
    for turn in found[1:3]:
        assert {member.digest for member in turn.after.members} == {member.digest for member in founded.members}
        assert turn.after.extra["worst"] == founded.extra["worst"]
    assert len(found[4].after.members) == 10


def test_two_at_one_place_breed_as_one() -> None:
    strategy = hybrid(population=9, initial=8, crossover={"trials": 12, "rate": 1, "parents": 8})
    state = turns(strategy, 1)[-1].after
    population = state.population.clone()
    population[1] = population[0]
    members = (state.members[0], state.members[0], *state.members[2:])
    births = strategy.ask(replace(state, members=members, tensors={**state.tensors, "population": population}), KEY)
    fitness = {member.digest: member.score.value for member in members}
    for origin in births.origins[:12]:
        assert sorted(origin.parents) == sorted(fitness)
        shares = np.array([fitness[digest] for digest in origin.parents])
        np.testing.assert_allclose(origin.details["weights"], shares / shares.sum(), rtol=1e-6)


def test_births_per_generation_is_the_mean_over_both_phases() -> None:
    strategy = hybrid(population=10, crossover={"rate": 0.6}, mutation={"rate": 0.25})
    moving = turns(strategy, 4)[-1].after
    breeding = turns(strategy, 5)[-1].after
    assert len(moving.members) == len(breeding.members) == 10
    counts = [len(strategy.ask(breeding, Key(seed)).origins) for seed in range(300)]
    mean = (len(strategy.ask(moving, KEY).origins) + np.mean(counts)) / 2
    assert abs(mean - strategy.births_per_generation()) < 2 * np.std(counts) / np.sqrt(len(counts))
    assert strategy.births_per_generation() == pytest.approx((10 + 3 + 0.25 * 13) / 2)


@pytest.mark.parametrize(
    ("parameters", "cause", "where"),
    [
        ({"initial": 12, "population": 11}, "initial = 12 is more than the population of 11", "initial"),
        (
            {"survivors": {"name": "roulette", "elites": 21}},
            "survivors.elites = 21 is more than the population of 20",
            "survivors.elites",
        ),
    ],
)
def test_what_does_not_fit_the_population_is_refused(parameters: dict[str, Any], cause: str, where: str) -> None:
    with pytest.raises(Problems) as caught:
        hybrid(**parameters)
    (problem,) = caught.value.problems
    assert (problem.cause, problem.where) == (cause, where)
    assert problem.fix.endswith(", or enlarge the population.")


def test_no_stack_of_a_state_is_another_s_memory() -> None:
    for turn in turns(hybrid(population=10), 4):
        tensors = turn.after.tensors
        pointers = {stack.untyped_storage().data_ptr() for stack in tensors.values()}
        assert len(pointers) == len(tensors)
        assert digest_tensor(tensors["best"][0]) == (turn.after.best.digest if turn.after.best else None)
