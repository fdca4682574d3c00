"""Values: scores are finite, identity is content."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from evomerge.types import (
    Births,
    Individual,
    Origin,
    Score,
    Segment,
    State,
    digest_bytes,
    digest_json,
    digest_tensor,
)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["value", "tasks", "examples"])
def test_a_score_holds_finite_numbers_only(bad: float, place: str) -> None:
    fields = {"value": 1.0, "tasks": {"t": 1.0}, "examples": {"t": (0.0, 1.0)}}
    Score(**fields)
    fields[place] = {"value": bad, "tasks": {"t": bad}, "examples": {"t": (0.0, bad)}}[place]
    with pytest.raises(ValueError, match="what cannot be scored is a Failure"):
        Score(**fields)


def test_values_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Score(1.0).value = 2.0


def test_digests_of_bytes_depend_on_where_parts_end() -> None:
    assert digest_bytes(b"ab", b"c") != digest_bytes(b"a", b"bc") != digest_bytes(b"abc")
    assert len(digest_bytes(b"")) == 32


def test_digests_of_json_do_not_depend_on_the_order_of_keys() -> None:
    assert digest_json({"a": 1, "b": [2, 3]}) == digest_json({"b": [2, 3], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 1.5}) != digest_json({"a": "1"})
    with pytest.raises(ValueError, match="JSON"):
        digest_json(math.nan)


def test_the_digest_of_a_tensor_is_its_content() -> None:
    x = torch.arange(6.0)
    assert digest_tensor(x) == digest_tensor(x.clone().requires_grad_())
    assert digest_tensor(x.reshape(2, 3).T) == digest_tensor(x.reshape(2, 3).T.contiguous())
    others = [x.reshape(2, 3), x.double(), x.int(), -x, x.reshape(2, 3).T]
    assert len({digest_tensor(y) for y in [x, *others]}) == 6
    assert digest_tensor(torch.tensor([0.0])) != digest_tensor(torch.tensor([-0.0]))
    assert digest_tensor(torch.empty(0)) != digest_tensor(torch.empty(0, 3))


def test_a_segment_ends_after_its_entries() -> None:
    assert Segment("w", 5, (2, 3)).stop == 11
    assert Segment("scalar", 5, ()).stop == 6


def test_births_have_one_origin_each() -> None:
    genomes = torch.randn(2, 3)
    births = Births(genomes, (Origin("expert"), Origin("expert")))
    assert births.digests == (digest_tensor(genomes[0]), digest_tensor(genomes[1]))
    with pytest.raises(ValueError, match=r"1 origins for genomes of shape \(2, 3\)"):
        Births(genomes, (Origin("expert"),))


def test_the_digest_of_a_state_sees_every_part() -> None:
    genomes = torch.randn(2, 3)
    members = tuple(Individual(digest_tensor(row), Score(0.5), Origin("expert"), 0) for row in genomes)
    state = State(0, members, members[0], 0, {"population": genomes, "best": genomes[:1]})
    assert torch.equal(state.population, genomes)
    changed = [
        replace(state, generation=1),
        replace(state, members=members[::-1]),
        replace(state, members=(replace(members[0], score=Score(0.6)), members[1])),
        replace(state, members=(replace(members[0], born=1), members[1])),
        replace(state, best=members[1]),
        replace(state, best=None),
        replace(state, stalled=1),
        replace(state, tensors={**state.tensors, "best": genomes[1:]}),
        replace(state, tensors={**state.tensors, "velocity": genomes}),
        replace(state, extra={"sigma": 0.1}),
    ]
    assert len({other.digest for other in [state, *changed]}) == 1 + len(changed)
    same = replace(state, tensors=dict(reversed(state.tensors.items())))
    assert same.digest == state.digest
