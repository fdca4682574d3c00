"""Gaussian mutation: rates, scales, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.errors import EvomergeError
from evomerge.keys import Key
from evomerge.types import Segment, digest_tensor
from evomerge.variation.mutate import MUTATIONS

SEGMENTS = (
    Segment("small", 0, (100, 100)),
    Segment("zero", 10_000, (50,)),
    Segment("large", 10_050, (20_000,)),
)
gaussian = MUTATIONS["gaussian"]


def genome() -> torch.Tensor:
    noise = torch.randn(30_050, generator=Key(0).torch())
    scale = torch.cat([torch.full((10_000,), 1e-3), torch.zeros(50), torch.full((20_000,), 2.0)])
    return noise * scale + (scale > 1) * 5  # the offset must not count: a deviation, not a norm


def test_steps_are_relative_to_the_deviation_of_their_own_tensor() -> None:
    x = genome()
    steps = gaussian(x, SEGMENTS, Key(1), gene_rate=1.0, sigma=0.5) - x
    for segment in SEGMENTS:
        part = slice(segment.start, segment.stop)
        expected = 0.5 * np.std(x[part].double().numpy())
        measured = steps[part].double().std().item()
        assert abs(measured - expected) <= 5 * expected / (2 * (segment.stop - segment.start)) ** 0.5
        assert abs(steps[part].double().mean().item()) <= 5 * expected / (segment.stop - segment.start) ** 0.5


def test_the_deviation_is_the_populations() -> None:
    x, segments = torch.tensor([1.0, 3.0, 5.0, 5.0]), (Segment("a", 0, (2,)), Segment("b", 2, (2,)))
    unit = gaussian(x, segments, Key(1), gene_rate=1.0, sigma=0.5, relative=False) - x
    steps = gaussian(x, segments, Key(1), gene_rate=1.0, sigma=0.5) - x
    torch.testing.assert_close(steps, unit * torch.tensor([1.0, 1.0, 0.0, 0.0]), rtol=1e-4, atol=1e-6)


def test_a_tensor_of_zeros_is_unchanged() -> None:
    assert not gaussian(genome(), SEGMENTS, Key(1), gene_rate=1.0)[10_000:10_050].any()


def test_absolute_steps_ignore_the_tensors() -> None:
    x = genome()
    steps = (gaussian(x, SEGMENTS, Key(1), gene_rate=1.0, sigma=0.01, relative=False) - x).double()
    for segment in SEGMENTS[::2]:
        assert abs(steps[segment.start : segment.stop].std().item() / 0.01 - 1) < 0.04
    assert steps[10_000:10_050].all()


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_the_gene_rate_is_the_share_that_changes_and_the_rest_keeps_its_bits(rate: float) -> None:
    x = genome()
    child = gaussian(x, SEGMENTS, Key(2), gene_rate=rate, relative=False)
    share = (child != x).float().mean().item()
    assert abs(share - rate) < 5 * (rate * (1 - rate) / len(x)) ** 0.5


def test_a_rate_of_zero_changes_nothing() -> None:
    assert torch.equal(gaussian(genome(), SEGMENTS, Key(2), gene_rate=0.0), genome())


def test_the_key_decides_the_bytes_whatever_the_threads() -> None:
    x, threads = genome(), torch.get_num_threads()
    large = (Segment("large", 0, (30_050 * 20,)),)
    digests = []
    try:
        for count, key in ((1, Key(1)), (2, Key(1)), (2, Key(2))):
            torch.set_num_threads(count)
            digests.append(digest_tensor(gaussian(x.repeat(20), large, key, gene_rate=0.1)))
    finally:
        torch.set_num_threads(threads)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_argument_is_left_alone(rate: float) -> None:
    x = genome()
    before = digest_tensor(x)
    gaussian(x, SEGMENTS, Key(1), gene_rate=rate).fill_(7.0)
    assert digest_tensor(x) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = genome().to(dtype)
    child = gaussian(x, SEGMENTS, Key(1), gene_rate=0.5)
    assert child.dtype == torch.float32
    assert torch.equal(child, gaussian(x.float(), SEGMENTS, Key(1), gene_rate=0.5))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gene_rate": 1.1}, "gaussian.gene_rate = 1.1: it should be less than or equal to 1"),
        ({"gene_rate": -0.1}, "gaussian.gene_rate = -0.1: it should be greater than or equal to 0"),
        ({"sigma": 0.0}, "gaussian.sigma = 0.0: it should be greater than 0"),
        ({"sigma": float("nan")}, "gaussian.sigma = nan: it should be a finite number"),
        ({"sigmas": 1.0}, "gaussian has no parameter 'sigmas'"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, float], message: str) -> None:
    with pytest.raises(EvomergeError) as caught:
        gaussian(genome(), SEGMENTS, Key(1), **params)
    assert message in str(caught.value)


def test_segments_that_do_not_fit_are_named() -> None:
    with pytest.raises(EvomergeError) as caught:
        gaussian(genome(), SEGMENTS[:2], Key(1))
    assert "2 segments end at 10050, but the genome has 30050 entries" in str(caught.value)
