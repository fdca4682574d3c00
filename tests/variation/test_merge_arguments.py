"""What a merge refuses, and the words it uses."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import EvomergeError, RunError
from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.merge import MERGES

KEY = Key(0)
SEGMENTS = (Segment("a", 0, (20, 10)), Segment("b", 200, (10,)))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("ties", {"density": 0.0}, "ties.density = 0.0: it should be greater than 0"),
        ("dare_ties", {"density": 1.5}, "dare_ties.density = 1.5: it should be less than or equal to 1"),
        (
            "dare_linear",
            {"density": float("nan")},
            "dare_linear.density = nan: it should be less than or equal to 1",
        ),
        ("task_arithmetic", {"lam": 0.0}, "task_arithmetic.lam = 0.0: it should be greater than 0"),
        ("ties", {"lam": float("inf")}, "ties.lam = inf: it should be a finite number"),
        ("ties", {"scope": "row"}, "ties.scope = 'row': it should be 'tensor' or 'global'"),
        ("ties", {"compat": "other"}, "ties.compat = 'other': it should be 'paper', 'peft' or 'mergekit'"),
        ("linear", {"density": 0.5}, "linear has no parameter 'density'"),
    ],
)
def test_bad_parameters_are_named(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(EvomergeError) as caught:
        MERGES[name](torch.zeros(2, 210), torch.full((2,), 0.5), SEGMENTS, KEY, **params)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "weights", "message"),
    [
        ((210,), [1.0], "A stack of shape (210,) cannot be merged"),
        ((0, 210), [], "A stack of shape (0, 210) cannot be merged"),
        ((2, 210), [1.0], "Weights of shape (1,) for 2 parents"),
        ((2, 210), [1.0, float("nan")], "The weights [1.0, nan] are not all finite"),
    ],
)
@pytest.mark.parametrize("name", tuple(MERGES))
def test_bad_arguments_are_named(name: str, shape: tuple[int, ...], weights: list[float], message: str) -> None:
    with pytest.raises(RunError) as caught:
        MERGES[name](torch.zeros(shape), torch.tensor(weights), SEGMENTS, KEY)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([Segment("a", 0, (2,)), Segment("b", 3, (1,))], "segment 'b' starts at 3, not at 2"),
        ([Segment("a", 0, (2,)), Segment("b", 1, (3,))], "segment 'b' starts at 1, not at 2"),
        ([Segment("a", 0, (3,))], "1 segments end at 3, but the genome has 4 entries"),
    ],
)
def test_segments_that_do_not_tile_the_genome_are_named(segments: list[Segment], message: str) -> None:
    with pytest.raises(RunError) as caught:
        MERGES["ties"](torch.zeros(1, 4), torch.ones(1), segments, KEY)
    assert message in str(caught.value)


def test_segments_may_come_in_any_order_and_be_empty() -> None:
    segments = [Segment("b", 2, (2,)), Segment("none", 2, (0, 5)), Segment("a", 0, (2,))]
    child = MERGES["ties"](torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.ones(1), segments, KEY, density=0.5)
    assert child.tolist() == [0, 2, 0, 4]
