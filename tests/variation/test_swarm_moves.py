"""The swarm's arithmetic against the published formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.errors import Problems
from evomerge.keys import Key
from evomerge.strategies import STRATEGIES
from evomerge.types import digest_tensor
from evomerge.variation.swarm import Flock, MoveSpec, start_velocities

DIMENSION = 60_001  # longer than two blocks, and no multiple of a vector's width
WEIGHTS = [(0.4, 0.1, 0.3, 0.2), (0.1, 0.2, 0.3, 0.4), (0.25, 0.05, 0.65, 0.05)]


def flock(dimension: int = DIMENSION) -> Flock:
    random = Key(3).at("flock").torch()
    stacks = [torch.randn(3, dimension, generator=random) for _ in range(3)]
    return Flock(*stacks, torch.randn(dimension, generator=random), torch.randn(dimension, generator=random))


def test_velocity_is_the_published_sum_and_the_move_a_step_along_it() -> None:
    given = flock()
    x, v, p, g, w = (
        tensor.double().numpy()
        for tensor in (given.positions, given.velocities, given.personal, given.best, given.worst)
    )
    for row, (a, b, c, e) in enumerate(WEIGHTS):
        expected = a * v[row] + b * (p[row] - x[row]) + c * (g - x[row]) - e * (w - x[row])
        np.testing.assert_allclose(given.steered(WEIGHTS)[row], expected, atol=2e-6)
        np.testing.assert_allclose(given.moved(WEIGHTS, 0.35)[row], x[row] + 0.35 * expected, atol=2e-6)


def test_who_is_at_rest_where_all_is_best_and_worst_stays_there_exactly() -> None:
    place = flock().positions
    there = Flock(place[:1], torch.zeros(1, DIMENSION), place[:1].clone(), place[0].clone(), place[0].clone())
    assert torch.equal(there.moved(WEIGHTS[:1], 1.0), place[:1])
    assert not there.steered(WEIGHTS[:1]).any()


def test_bytes_do_not_depend_on_threads_and_nothing_is_changed() -> None:
    given = flock()
    before = [digest_tensor(tensor) for tensor in vars(given).values()]
    found, threads = set(), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.add((digest_tensor(given.steered(WEIGHTS)), digest_tensor(given.moved(WEIGHTS, 0.7))))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
    assert [digest_tensor(tensor) for tensor in vars(given).values()] == before


def test_weights_are_drawn_and_normalised() -> None:
    spec = MoveSpec(inertia=0.4, cognitive=0.1, social=0.3, repel=0.2)
    for seed in range(5):
        r = Key(seed).numpy().random(4)
        expected = r * [0.4, 0.1, 0.3, 0.2] / (r @ [0.4, 0.1, 0.3, 0.2])
        np.testing.assert_allclose(spec.weights(Key(seed)), expected, rtol=1e-12)
    alone = MoveSpec(inertia=0, cognitive=0.2, social=0, repel=0)
    assert alone.weights(Key(0)) == (0, 1, 0, 0)


def test_steps_shrink_to_the_floor() -> None:
    spec = MoveSpec(step=0.8, step_decay=0.5, step_floor=0.15)
    assert [spec.step_at(number) for number in range(5)] == pytest.approx([0.8, 0.4, 0.2, 0.15, 0.15])


def test_a_random_start_is_towards_another_particle() -> None:
    positions = flock(7).positions
    before = positions.clone()
    seen = set()
    for seed in range(40):
        velocities = start_velocities("random", positions, positions[0], Key(seed))
        for i, row in enumerate(velocities):
            (j,) = [j for j in range(3) if torch.equal(row, positions[j] - positions[i])]
            seen.add((i, j))
    assert seen == {(i, j) for i in range(3) for j in range(3) if i != j}
    assert torch.equal(positions, before)


def test_other_starts() -> None:
    positions, best = flock(7).positions, flock(7).best
    assert torch.equal(start_velocities("best", positions, best, Key(0)), best - positions)
    assert torch.equal(start_velocities("zero", positions, best, Key(0)), torch.zeros(3, 7))
    assert torch.equal(start_velocities("random", positions[:1], best, Key(0)), torch.zeros(1, 7))


@pytest.mark.parametrize(
    ("move", "cause"),
    [
        (
            {"inertia": 0, "cognitive": 0, "social": 0, "repel": 0},
            "inertia, cognitive, social and repel are all 0: nothing can move",
        ),
        ({"step": 0.05}, "step_floor = 0.1 is above the first step = 0.05"),
    ],
)
def test_what_cannot_move_is_refused(move: dict[str, float], cause: str) -> None:
    with pytest.raises(Problems) as caught:
        STRATEGIES["swarm"].bind(move=move)
    (problem,) = caught.value.problems
    assert (problem.cause, problem.where) == (cause, "move")
    assert problem.fix == "See `evomerge explain swarm`."
