"""Survivor selection: elites, order, probabilities, and the same answer in another process."""

from __future__ import annotations

import contextlib
import io
import os
import random  # noqa: TID251 - to see that it does not move
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evomerge
from evomerge.errors import EvomergeError, FitnessError, RecipeError
from evomerge.keys import Key
from evomerge.selection.survivors import SURVIVORS

METHODS = ("rank", "roulette", "tournament", "truncation")
FITNESS = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -1.0, 1.0]), min_size=1)
DRAWS = 1500


def second_places(name: str, fitness: list[float], **params: object) -> list[float]:
    """Return how often each member gets the one place beside the elite."""
    survive, values = SURVIVORS[name], np.array(fitness)
    elite = int(values.argmax())
    counts = Counter(
        next(i for i in survive(values, 2, Key(0).at(draw), **params) if i != elite) for draw in range(DRAWS)
    )
    return [counts[i] / DRAWS for i in range(len(fitness))]


def assert_shares(measured: list[float], expected: list[float]) -> None:
    for got, probability in zip(measured, expected, strict=True):
        assert abs(got - probability) <= 4.5 * (probability * (1 - probability) / DRAWS) ** 0.5


def test_the_registry() -> None:
    assert tuple(SURVIVORS) == METHODS


@given(fitness=FITNESS, data=st.data())
@settings(max_examples=75, deadline=None)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_whatever_the_fitness(name: str, fitness: list[float], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(fitness) + 2))
    elites = data.draw(st.integers(1, size))
    values = np.array(fitness)
    alive = SURVIVORS[name](values, size, Key(1), elites=elites)
    order = sorted(range(len(fitness)), key=lambda i: (-fitness[i], i))
    assert len(alive) == len(set(alive)) == min(size, len(fitness))
    assert list(alive) == [i for i in order if i in alive]  # fittest first, ties by index
    assert list(alive[:elites]) == order[:elites]
    assert values.tolist() == fitness


def test_truncation_keeps_the_fittest() -> None:
    assert SURVIVORS["truncation"](np.array([0.1, 0.9, 0.5, 0.9, -1.0]), 3, Key(0)) == (1, 3, 2)


def test_rank_gives_the_best_the_highest_probability() -> None:
    # Member 0 is the elite; the others have ranks 4, 2, 1 and 3 of five, whatever the distances.
    assert_shares(second_places("rank", [1e9, 8.0, -3.0, -1e9, 0.0]), [0, 0.4, 0.2, 0.1, 0.3])


def test_rank_shares_the_mean_rank_of_equals() -> None:
    # Ranks of five: 5 for the elite, 3.5 for two equals, 1.5 for two equals.
    assert_shares(second_places("rank", [9.0, 2.0, 2.0, 1.0, 1.0]), [0, 0.35, 0.35, 0.15, 0.15])


def test_roulette_is_proportional_to_fitness() -> None:
    assert_shares(second_places("roulette", [9.0, 5.0, 3.0, 2.0, 0.0]), [0, 0.5, 0.3, 0.2, 0])


def test_roulette_with_negative_fitness_starts_from_the_lowest() -> None:
    assert_shares(second_places("roulette", [9.0, 4.0, 2.0, 1.0, -1.0]), [0, 0.5, 0.3, 0.2, 0])


def test_roulette_fills_up_uniformly_when_all_weight_is_spent() -> None:
    alive = Counter(i for d in range(DRAWS) for i in SURVIVORS["roulette"](np.eye(4)[0], 2, Key(d)))
    assert_shares([alive[i] / DRAWS for i in range(4)], [1, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("size", [1, 3])
def test_tournament_size_sets_the_pressure(size: int) -> None:
    # Among the four who are no elites, as in parent selection.
    by_rank = [(r / 4) ** size - ((r - 1) / 4) ** size for r in (1, 2, 3, 4)]
    expected = [0, *reversed(by_rank)]
    assert_shares(second_places("tournament", [9.0, 4.0, 3.0, 2.0, 1.0], tournament_size=size), expected)


@pytest.mark.parametrize("name", METHODS)
def test_the_key_decides_and_the_global_state_does_not_move(name: str) -> None:
    fitness = np.arange(40.0)
    random.seed(1)
    before = random.getstate()
    first = SURVIVORS[name](fitness, 10, Key(3))
    assert random.getstate() == before
    random.seed(2)
    assert SURVIVORS[name](fitness, 10, Key(3)) == first
    assert (SURVIVORS[name](fitness, 10, Key(4)) != first) == (name != "truncation")


SCRIPT = """
import numpy as np
from evomerge.keys import Key
from evomerge.selection.parents import PARENTS
from evomerge.selection.survivors import SURVIVORS
fitness = np.sin(np.arange(50))
for name in PARENTS:
    print(name, PARENTS[name](fitness, 6, Key(9).at(name)))
for name in SURVIVORS:
    print(name, SURVIVORS[name](fitness, 20, Key(9).at(name), elites=2))
"""


def test_another_process_with_another_hash_seed_selects_the_same() -> None:
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(SCRIPT, {})
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(evomerge.__file__).parents[1])}
    there = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    assert there.stdout == here.getvalue()
    assert len(there.stdout.splitlines()) == 6


@pytest.mark.parametrize("name", METHODS)
def test_more_elites_than_places_are_named(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        SURVIVORS[name](np.ones(9), 3, Key(0), elites=4)
    assert "elites = 4 is more than the 3 places of the population" in str(caught.value)
    assert "Set elites to at most 3" in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_bad_fitness_is_named(name: str) -> None:
    with pytest.raises(FitnessError) as caught:
        SURVIVORS[name](np.array([float("-inf"), 1.0]), 1, Key(0))
    assert "The fitness of member 0 is -inf" in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_no_elites_at_all_are_refused(name: str) -> None:
    with pytest.raises(EvomergeError) as caught:
        SURVIVORS[name](np.ones(3), 2, Key(0), elites=0)
    assert f"{name}.elites = 0: it should be greater than or equal to 1" in str(caught.value)
