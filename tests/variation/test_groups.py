"""Groups of tensors: by the number of the layer, not by its spelling; by what comes behind it."""

from __future__ import annotations

import pytest

from evomerge.errors import RecipeError
from evomerge.types import Segment
from evomerge.variation.groups import group_segments


def segments(*names: str) -> tuple[Segment, ...]:
    return tuple(Segment(name, 2 * i, (2,)) for i, name in enumerate(names))


def grouped(names: tuple[str, ...], layers: int = 1, kinds: bool = False) -> dict[str, list[str]]:
    return {g.name: [s.name for s in g.segments] for g in group_segments(segments(*names), layers, kinds)}


LLAMA = tuple(
    f"model.layers.{layer}.{module}.{factor}"
    for layer in sorted(map(str, range(12)))  # as spaces sort: 0, 1, 10, 11, 2, ..
    for module in ("mlp.up_proj", "self_attn.q_proj")
    for factor in ("lora_A", "lora_B")
)


def layer(name: str) -> int:
    return int(name.split(".")[2])


def test_by_default_all_is_one_group_in_the_genomes_order() -> None:
    assert grouped(LLAMA) == {"all": list(LLAMA)}
    assert grouped(("a", "b")) == {"all": ["a", "b"]}


def test_layers_are_ordered_by_number_and_runs_are_as_equal_as_can_be() -> None:
    groups = grouped(LLAMA, layers=5)
    assert {name: sorted({layer(each) for each in names}) for name, names in groups.items()} == {
        "layers 0-2": [0, 1, 2],
        "layers 3-5": [3, 4, 5],
        "layers 6-7": [6, 7],
        "layers 8-9": [8, 9],
        "layers 10-11": [10, 11],
    }
    assert list(groups) == ["layers 0-2", "layers 3-5", "layers 6-7", "layers 8-9", "layers 10-11"]
    assert sorted(name for names in groups.values() for name in names) == sorted(LLAMA)
    assert all(names == [name for name in LLAMA if name in names] for names in groups.values())


def test_kinds_are_what_comes_behind_the_layer() -> None:
    assert {kind: {name.split(".")[3] for name in names} for kind, names in grouped(LLAMA, kinds=True).items()} == {
        "mlp": {"mlp"},
        "self_attn": {"self_attn"},
    }
    other = ("model.decoder.layers.0.fc1", "transformer.h.0.attn.c_attn.weight", "h.0")
    assert list(grouped(other, kinds=True)) == ["attn", "fc1", "other"]


def test_both_make_a_group_of_each_kind_in_each_run() -> None:
    groups = grouped(LLAMA, layers=2, kinds=True)
    assert list(groups) == ["layers 0-5 mlp", "layers 0-5 self_attn", "layers 6-11 mlp", "layers 6-11 self_attn"]
    assert all(layer(name) >= 6 and ".mlp." in name for name in groups["layers 6-11 mlp"])


def test_what_is_in_no_layer_goes_with_the_first_run_as_a_kind_of_its_own() -> None:
    names = ("lm_head", "model.layers.0.mlp.up", "model.layers.1.mlp.up")
    assert grouped(names, layers=2) == {"layers 0-0": ["lm_head", names[1]], "layers 1-1": [names[2]]}
    assert grouped(names, kinds=True) == {"mlp": [*names[1:]], "other": ["lm_head"]}


@pytest.mark.parametrize(("names", "layers", "found"), [(LLAMA, 13, 12), (("a", "b"), 2, 0)])
def test_more_runs_than_layers_are_refused(names: tuple[str, ...], layers: int, found: int) -> None:
    with pytest.raises(RecipeError) as caught:
        group_segments(segments(*names), layers, False)
    assert caught.value.cause == f"layers = {layers}, but the genome's tensors are in {found} numbered layers"
    assert caught.value.where == "strategy.genotype.layers"
    assert caught.value.fix == f"Ask for at most {max(1, found)} groups of layers."
