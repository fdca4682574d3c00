"""The steady state on a real Ray cluster: whatever the order was, one worker replays it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evomerge.checkpoint.ledger import Ledger
from evomerge.cli.display import Display
from evomerge.launch import launch, resume
from evomerge.recipe.load import load_recipe
from runs import write_run

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_a_driver_that_dies_is_resumed_and_its_run_replayed_in_this_process(
    make_adapter: Callable[..., Path], pico_base: Path, tmp_path: Path
) -> None:
    evaluator = {"threads": 1, "group": 2, "dtype": "float32", "device": "cpu"}
    experts = [make_adapter(f"e{i}", seed=i) for i in range(3)]
    recipe = write_run(tmp_path, pico_base, experts, evaluator=evaluator, mode="steady", stop={"generations": 12})
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "from evomerge.cli import main; main()",
        "run",
        str(recipe),
        "--workers",
        "2",
        "--output",
        str(run),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.startswith("generation   3"):
                driver.kill()
                break
    found = resume(run, Display(), workers="3")
    assert found.state.generation == 12
    again = launch(load_recipe(recipe), tmp_path / "again", Display(), replay=run)
    assert again.setup.recipe.evaluator.name == "local"
    assert again.state.digest == found.state.digest
    assert Ledger(tmp_path / "again" / "ledger.jsonl").events() == Ledger(run / "ledger.jsonl").events()
    sent = [event for event in Ledger(run / "ledger.jsonl").events() if event["event"] == "group"]
    # Several were in flight: some were sent before the one before them had been told.
    assert any(event["generation"] < event["group"] for event in sent)
