"""A run on a real Ray cluster: the same bytes as the local one, whoever works, and in whatever order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evomerge.checkpoint.ledger import Ledger
from evomerge.cli.display import Display
from evomerge.launch import Finished, launch
from evomerge.recipe.load import load_recipe
from runs import write_run

ray = pytest.importorskip("ray")
THREADS = {"threads": 1, "group": 2, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def experts(make_adapter: Callable[..., Path]) -> list[Path]:
    return [make_adapter(f"e{i}", seed=i) for i in range(3)]


@pytest.fixture(scope="module")
def local(pico_base: Path, experts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("local")
    return launch(load_recipe(write_run(folder, pico_base, experts, evaluator=THREADS)), folder / "run", Display())


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_bytes(
    workers: int, local: Finished, pico_base: Path, experts: list[Path], tmp_path: Path
) -> None:
    recipe = write_run(tmp_path, pico_base, experts, evaluator=THREADS | {"name": "ray", "workers": workers})
    found = launch(load_recipe(recipe), tmp_path / "run", Display())
    assert found.state.digest == local.state.digest
    assert Ledger(tmp_path / "run" / "ledger.jsonl").digest() == Ledger(local.folder / "ledger.jsonl").digest()
    assert (tmp_path / "run" / "report" / "table.md").read_text() == (local.folder / "report" / "table.md").read_text()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "run" / "best" / name).read_bytes() == (local.folder / "best" / name).read_bytes()
