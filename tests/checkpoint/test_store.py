"""Genomes by content: what comes back is what went in, or an error that names the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoint.store import GenomeStore
from evomerge.errors import RunError
from evomerge.keys import Key
from evomerge.types import digest_tensor


def genome(seed: int, d: int = 7) -> torch.Tensor:
    return torch.randn(d, generator=Key(seed).torch())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_a_genome_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    store = GenomeStore(tmp_path)
    vector = (genome(0) * 10).to(dtype)
    digest = store.put(vector)
    assert digest == digest_tensor(vector)
    back = GenomeStore(tmp_path).get(digest)
    assert back.dtype == dtype
    assert torch.equal(back, vector)


def test_special_numbers_keep_their_bits(tmp_path: Path) -> None:
    store = GenomeStore(tmp_path)
    vector = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45])
    back = store.get(store.put(vector))
    assert torch.equal(back.view(torch.int32), vector.view(torch.int32))


def test_the_file_is_plain_safetensors_under_the_digest(tmp_path: Path) -> None:
    digest = GenomeStore(tmp_path).put(genome(0))
    assert [path.name for path in tmp_path.iterdir()] == [f"{digest}.safetensors"]
    assert torch.equal(load_file(tmp_path / f"{digest}.safetensors")["genome"], genome(0))


def test_rows_of_a_stack_and_views_are_stored_by_content(tmp_path: Path) -> None:
    store = GenomeStore(tmp_path)
    stack = torch.stack([genome(0), genome(1), genome(0)])
    rows = store.put_stack(stack.T.contiguous().T)
    assert rows == [digest_tensor(row) for row in stack]
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(store.get_stack(rows, 7), stack)


def test_a_genome_is_written_once(tmp_path: Path) -> None:
    digest = GenomeStore(tmp_path).put(genome(0))
    before = (tmp_path / f"{digest}.safetensors").stat()
    GenomeStore(tmp_path).put(genome(0))
    after = (tmp_path / f"{digest}.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_is_put_and_got_is_no_alias(tmp_path: Path) -> None:
    store = GenomeStore(tmp_path)
    vector = genome(0)
    digest = store.put(vector)
    store.get(digest).zero_()
    vector.zero_()
    assert digest_tensor(store.get(digest)) == digest


def test_contains(tmp_path: Path) -> None:
    store = GenomeStore(tmp_path)
    assert store.put(genome(0)) in store
    assert digest_tensor(genome(1)) not in store


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_stack_keeps_its_shape(tmp_path: Path, dtype: torch.dtype) -> None:
    store = GenomeStore(tmp_path)
    rows = store.put_stack(torch.empty((0, 5), dtype=dtype))
    back = store.get_stack(rows, 5, dtype)
    assert back.shape == (0, 5)
    assert back.dtype == dtype


def test_a_genome_without_entries(tmp_path: Path) -> None:
    store = GenomeStore(tmp_path)
    assert store.get(store.put(torch.empty(0))).shape == (0,)


def test_a_missing_genome_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        GenomeStore(tmp_path).get("abc")
    assert caught.value.cause == "genome abc is missing"
    assert caught.value.where == str(tmp_path / "abc.safetensors")
    assert "Restore the file from a backup" in caught.value.fix


def test_no_single_damaged_byte_goes_unnoticed(tmp_path: Path) -> None:
    store = GenomeStore(tmp_path)
    digest = store.put(genome(0))
    path = store.path(digest)
    good = path.read_bytes()
    for index in range(len(good)):
        path.write_bytes(good[:index] + bytes([good[index] ^ 0x10]) + good[index + 1 :])
        try:
            back = store.get(digest)
        except RunError as error:
            assert digest in error.cause and error.where == str(path)
        else:  # a byte of the header's padding: the genome is what it was
            assert torch.equal(back, genome(0))


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_a_truncated_genome_is_an_error(tmp_path: Path, length: int) -> None:
    store = GenomeStore(tmp_path)
    digest = store.put(genome(0))
    store.path(digest).write_bytes(store.path(digest).read_bytes()[:length])
    with pytest.raises(RunError, match=f"genome {digest} cannot be read: "):
        store.get(digest)


def test_another_genome_under_this_name_is_an_error_with_both_digests(tmp_path: Path) -> None:
    store = GenomeStore(tmp_path)
    digest = store.put(genome(0))
    save_file({"genome": genome(1)}, store.path(digest))
    message = f"genome {digest} is damaged: its digest is {digest_tensor(genome(1))}"
    with pytest.raises(RunError, match=message):
        store.get(digest)


def test_bearing_a_damaged_genome_again_mends_it(tmp_path: Path) -> None:
    digest = GenomeStore(tmp_path).put(genome(0))
    (tmp_path / f"{digest}.safetensors").write_bytes(b"rubbish")
    resumed = GenomeStore(tmp_path)
    resumed.put(genome(0))
    assert torch.equal(resumed.get(digest), genome(0))


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    store = GenomeStore(tmp_path)
    with pytest.raises(RunError, match=re.escape("a genome has shape [d], not [2, 3]")):
        store.put(torch.zeros(2, 3))
    with pytest.raises(RunError, match=re.escape("a stack has shape [n, d], not [3]")):
        store.put_stack(torch.zeros(3))
    digest = store.put(genome(0))
    with pytest.raises(RunError, match=re.escape("has shape [7] of torch.float32, not [6] of torch.float32")):
        store.get_stack([digest], 6)
    with pytest.raises(RunError, match=re.escape("[7] of torch.float32, not [7] of torch.float64")):
        store.get_stack([digest], 7, torch.float64)
