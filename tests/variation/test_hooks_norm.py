"""The hooks that keep a size or drop what is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from evomerge.errors import EvomergeError
from evomerge.experts.pool import load_pool
from evomerge.keys import Key
from evomerge.spaces import GenomeSpace, build_space
from evomerge.types import Segment, digest_tensor
from evomerge.variation.hooks import HOOKS

KEY = Key(1)
match_norm, drop_small = HOOKS["match_norm"], HOOKS["drop_small"]


@pytest.fixture(scope="module", params=["subspace", "factors"])
def space(request: pytest.FixtureRequest, make_adapter: Callable[..., Path]) -> GenomeSpace:
    return build_space(request.param, load_pool([make_adapter(f"hooked{i}", seed=i) for i in range(3)]))


@pytest.fixture
def parents(space: GenomeSpace) -> torch.Tensor:
    scale = torch.tensor([1.0, 2.0, 0.5])[:, None]
    return scale * torch.randn(3, space.dimension, generator=Key(0).torch())


def delta_norm(space: GenomeSpace, genome: torch.Tensor) -> float:
    return sum(float(space.delta(genome, name).double().norm()) ** 2 for name in space.modules) ** 0.5


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
def test_the_norm_of_delta_w_becomes_the_parents_mean(space: GenomeSpace, parents: torch.Tensor, factor: float) -> None:
    child = parents.mean(dim=0)
    result = match_norm(child, parents, space, KEY, factor=factor)
    expected = factor * sum(delta_norm(space, parent) for parent in parents) / 3
    assert delta_norm(space, result) == pytest.approx(expected, rel=1e-5)
    name = next(iter(space.modules))
    ratio = space.delta(result, name) / space.delta(child, name)
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-3, atol=0)


def test_a_child_of_zeros_stays_one_and_equal_parents_change_nothing(space: GenomeSpace, parents: torch.Tensor) -> None:
    assert not match_norm(torch.zeros(space.dimension), parents, space, KEY).any()
    alike = parents[:1].repeat(4, 1)
    torch.testing.assert_close(match_norm(parents[0], alike, space, KEY), parents[0])
    assert space.norm(match_norm(parents[0], torch.zeros_like(parents), space, KEY)) == 0


def test_neither_order_nor_threads_nor_dtype_change_the_bytes(space: GenomeSpace, parents: torch.Tensor) -> None:
    child, threads = parents.mean(dim=0).half(), torch.get_num_threads()
    before = digest_tensor(child)
    digests = set()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for order in ([0, 1, 2], [2, 0, 1]):
                digests.add(digest_tensor(match_norm(child, parents[order], space, KEY)))
                digests.add(digest_tensor(match_norm(child.float(), parents[order], space, KEY)))
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1
    assert digest_tensor(child) == before


@dataclass(frozen=True)
class Two:
    """Tensors of unlike scales, one of zeros and one of a single entry."""

    segments = (Segment("a", 0, (2, 5)), Segment("b", 10, (4,)), Segment("zero", 14, (3,)), Segment("one", 17, (1,)))

    def norm(self, genome: torch.Tensor) -> float:
        return float(genome.norm())

    def scale(self, genome: torch.Tensor, factor: float) -> torch.Tensor:
        return genome * factor


CHILD = torch.tensor([1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 0.1, -0.2, 0.3, -0.4, 0, 0, 0, 0.05])


def test_the_largest_of_every_tensor_are_kept() -> None:
    result = drop_small(CHILD, CHILD[None], Two(), KEY, density=0.5)
    kept = [0, 0, 0, 0, 0, -6, 7, -8, 9, -10, 0, 0, 0.3, -0.4, 0, 0, 0, 0.05]
    assert torch.equal(result, torch.tensor(kept))


def test_a_tensor_keeps_at_least_one_entry_and_all_at_density_1() -> None:
    result = drop_small(CHILD, CHILD[None], Two(), KEY, density=0.01)
    assert result.nonzero().flatten().tolist() == [9, 13, 17]
    assert torch.equal(drop_small(CHILD, CHILD[None], Two(), KEY, density=1.0), CHILD)


def test_rescaling_keeps_the_norm_of_every_tensor() -> None:
    plain = drop_small(CHILD, CHILD[None], Two(), KEY, density=0.5)
    result = drop_small(CHILD, CHILD[None], Two(), KEY, density=0.5, rescale=True)
    assert torch.equal(result != 0, plain != 0)
    # sums of squares: 385 of which 36 + 49 + 64 + 81 + 100 = 330 are kept; 0.30 of which 0.25.
    torch.testing.assert_close(result[:10], plain[:10] * (385 / 330) ** 0.5)
    torch.testing.assert_close(result[10:14], plain[10:14] * (0.30 / 0.25) ** 0.5)
    assert result[14:].tolist() == CHILD[14:].tolist()


@pytest.mark.parametrize("rescale", [False, True])
def test_dropping_leaves_its_argument_alone(rescale: bool) -> None:
    child = CHILD.clone()
    drop_small(child, child[None], Two(), KEY, density=1.0, rescale=rescale).fill_(7.0)
    assert torch.equal(child, CHILD)
    half = drop_small(CHILD.bfloat16(), CHILD[None], Two(), KEY, rescale=rescale)
    assert torch.equal(half, drop_small(CHILD.bfloat16().float(), CHILD[None], Two(), KEY, rescale=rescale))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("match_norm", {"factor": 0}, "match_norm.factor = 0: it should be greater than 0"),
        ("match_norm", {"factor": float("inf")}, "match_norm.factor = inf: it should be a finite number"),
        ("match_norm", {"to": "parents"}, "match_norm has no parameter 'to'"),
        ("drop_small", {"density": 0}, "drop_small.density = 0: it should be greater than 0"),
        ("drop_small", {"density": 1.1}, "drop_small.density = 1.1: it should be less than or equal to 1"),
    ],
)
def test_bad_parameters_are_named(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(EvomergeError) as caught:
        HOOKS[name](CHILD, CHILD[None], Two(), KEY, **parameters)
    assert message in str(caught.value)
