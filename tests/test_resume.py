"""Runs that are killed, interrupted, starved of disk, tampered with: resumed, they end in the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import run_server
import safetensors.torch
import torch
import yaml
from runs import write_run

import evomerge
from evomerge.checkpoint.ledger import Ledger
from evomerge.checkpoint.lock import run_lock
from evomerge.checkpoint.snapshot import load_latest
from evomerge.checkpoint.store import GenomeStore
from evomerge.errors import Problems
from evomerge.experts.adapter import read_adapter
from evomerge.keys import Key
from evomerge.types import State

ROOT = str(Path(evomerge.__file__).parents[1])
# The same file whether it is slow or not, so that only the pace of a run changes.
FITNESS = '''"""How likely the model finds each row's ending, at the pace of the environment variable PICO_SECONDS."""

import math
import os
import time

ROWS = {split: [(f"{split} {i} abc", "xyz"[i % 3]) for i in range(6)] for split in ("search", "final")}


def fitness(model, split):
    time.sleep(float(os.environ.get("PICO_SECONDS", "0")))
    return [math.exp(x / 4) for x in model.loglikelihood(ROWS[split])]
'''
# Which individual fails, and how, is decided by the order of the calls; the base comes first.
FAILING = '''"""Fails in every way that a fitness can."""

import math

CALLS = []


def fitness(model, split):
    score = math.exp(model.loglikelihood([("abc", "x")])[0] / 4)
    if split == "final":
        return score
    CALLS.append(split)
    if len(CALLS) == 2:
        raise ZeroDivisionError("two is too many")
    if len(CALLS) == 3:
        return [score, math.nan]
    if len(CALLS) == 4:
        return "good"
    while len(CALLS) == 7:
        pass
    return score
'''
SHARES = (0.2, 0.4, 0.6)


class Server:
    """The fork server of ``run_server``, and the recipe that it was warmed with."""

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, run_server.__file__, str(recipe)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, folder: Path, **request: Any) -> dict[str, Any]:
        """Launch or resume in a child; return what the server says about it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"recipe": str(self.recipe), "folder": str(folder), **request}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def experts(make_adapter) -> list[Path]:
    ranks = {"ant": 4, "bee": 2, "cat": 3}
    return [make_adapter(name, rank=rank, seed=rank, size=0.3) for name, rank in ranks.items()]


@pytest.fixture(scope="module")
def server(pico_base: Path, experts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "likely.py").write_text(FITNESS)
    running = Server(write_run(folder, pico_base, experts, stop={"generations": 5}))
    yield running
    running.process.communicate()


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing interrupts, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    answer = server.run(folder)
    assert (answer["code"], answer["error"]) == (0, None)
    return folder, answer["seconds"]


def last_state(folder: Path) -> State:
    loaded = load_latest(folder, GenomeStore(folder / "genomes"))
    assert loaded is not None and not loaded.skipped
    return loaded.state


def results(folder: Path) -> dict[str, Any]:
    """Return everything of a finished run that must not depend on interruptions."""
    ledger = Ledger(folder / "ledger.jsonl")
    files = ["best/adapter_model.safetensors", "best/adapter_config.json", "best/README.md"]
    files += ["report/final.json", "report/table.md", "report/index.html", "recipe.yaml", "manifest.json"]
    return {
        "state": last_state(folder).digest,
        "events": ledger.events(),
        "ledger": ledger.digest(),
        "genomes": sorted(path.name for path in (folder / "genomes").iterdir()),
        "snapshot": max((folder / "snapshots").iterdir()).read_bytes(),  # older ones may wait to be removed
        "outcomes": (folder / "outcomes.jsonl").read_bytes(),
        **{name: (folder / name).read_bytes() for name in files},
    }


def on_disk(folder: Path) -> str:
    """Return how far a run has come, judged by its files alone; what there is must be whole."""
    if (folder / "best").exists():
        assert read_adapter(folder / "best").factors
    if not (folder / "manifest.json").exists():
        return "no manifest"
    loaded = load_latest(folder, GenomeStore(folder / "genomes"))
    if loaded is None:
        return "no snapshot"
    assert not loaded.skipped
    events = {event["event"] for event in Ledger(folder / "ledger.jsonl").events()}
    if "final" in events:
        return "report" if (folder / "report").exists() else "final split"
    return f"snapshot {loaded.state.generation}"


def test_kills_at_random_instants_change_nothing(
    server: Server, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    whole, duration = undisturbed
    expected = results(whole)
    random = Key(0).at("kills").numpy()
    disks: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    finished = 0
    while finished < 2 or disks.total() < 20:
        folder, attempts = tmp_path / f"killed-{finished}", 0
        while True:
            attempts += 1  # ever longer, so that every run gets to its end
            answer = server.run(folder, seconds=random.uniform(0, duration * attempts / 8))
            if answer["code"] == 0:
                break
            assert answer["code"] == -signal.SIGKILL, answer["error"]
            disks[on_disk(folder)] += 1
            stages[(answer["stages"] or ["before the first stage"])[-1]] += 1
        assert results(folder) == expected
        finished += 1
    sys.stdout.write(f"kills, by what was on disk: {dict(disks)}; by what was being done: {dict(stages)}\n")
    assert finished < 8, "the kills hit one stage only"
    assert {"no manifest", "report"} <= disks.keys()
    assert {stage.split()[0] for stage in stages} >= {"checking", "loading", "founders", "generation", "opening"}


def test_resuming_a_finished_run_changes_nothing(server: Server, undisturbed: tuple[Path, float]) -> None:
    folder, _ = undisturbed
    before = results(folder)
    answer = server.run(folder)
    assert (answer["code"], answer["evaluated"]) == (0, 0)
    assert results(folder) == before


@pytest.fixture
def own(pico_base: Path, experts: list[Path], tmp_path: Path) -> tuple[Path, list[Path]]:
    """A recipe of its own, with copies of fitness and experts that a test may spoil."""
    import shutil

    copies = [Path(shutil.copytree(expert, tmp_path / "experts" / expert.name)) for expert in experts]
    (tmp_path / "likely.py").write_text(FITNESS)
    return write_run(tmp_path, pico_base, copies, stop={"generations": 1}), copies


def edit(file: Path, place: str, value: Any) -> None:
    data = yaml.safe_load(file.read_text())
    *sections, name = place.split(".")
    part = data
    for section in sections:
        part = part[section]
    part[name] = value
    file.write_text(yaml.safe_dump(data, sort_keys=False))


def test_a_changed_recipe_is_refused_and_allowed_on_demand(server: Server, own, tmp_path: Path) -> None:
    recipe, _ = own
    folder = tmp_path / "run"
    assert server.run(folder, recipe=str(recipe))["code"] == 0
    edit(folder / "recipe.yaml", "strategy.population", 6)
    edit(folder / "recipe.yaml", "stop.generations", 2)
    answer = server.run(folder)
    assert (answer["code"], answer["kind"]) == (1, "RunError")
    assert "recipe.strategy.population: it was 5, it is 6" in answer["error"]
    assert "recipe.stop.generations: it was 1, it is 2" in answer["error"]
    assert "Put it back as it was, or start a new run; --allow-changes" in answer["error"]
    assert last_state(folder).generation == 1
    assert server.run(folder, allow_changes=True)["code"] == 0
    assert last_state(folder).generation == 2


def test_a_changed_fitness_file_is_refused_and_allowed_on_demand(server: Server, own, tmp_path: Path) -> None:
    recipe, _ = own
    folder = tmp_path / "run"
    first = server.run(folder, recipe=str(recipe))
    assert (first["code"], first["error"]) == (0, None)
    (tmp_path / "likely.py").write_text(FITNESS.replace("x / 4", "x / 5"))
    answer = server.run(folder)
    assert (answer["code"], answer["kind"]) == (1, "RunError")
    assert "fitness.likely.digest: it was '" in answer["error"]
    assert server.run(folder, allow_changes=True)["code"] == 0


def test_changed_weights_of_an_expert_are_refused_and_allowed_on_demand(server: Server, own, tmp_path: Path) -> None:
    recipe, copies = own
    folder, exact = tmp_path / "run", tmp_path / "exact"
    alone = ["space.name=factors", "experts=" + json.dumps([str(copies[0])])]
    assert server.run(folder, recipe=str(recipe), overrides=alone)["code"] == 0
    assert server.run(exact, recipe=str(recipe))["code"] == 0
    weights = copies[0] / "adapter_model.safetensors"
    tensors = {name: tensor * 1.5 for name, tensor in safetensors.torch.load_file(weights).items()}
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    answer = server.run(folder)
    assert (answer["code"], answer["kind"]) == (1, "RunError")
    assert "experts.ant: it was '" in answer["error"]
    assert "bee" not in answer["error"]
    assert server.run(folder, allow_changes=True)["code"] == 0
    # In the subspace of other experts a genome's numbers mean something else: nothing can allow that.
    answer = server.run(exact, allow_changes=True)
    assert (answer["code"], answer["kind"]) == (1, "RunError")
    assert "its genomes mean nothing in the genome space of other experts: experts.ant: it was" in answer["error"]
    assert answer["error"].endswith("to do: Put it back as it was, or start a new run.")


def test_a_run_folder_in_use_is_refused(server: Server, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    for folder in (undisturbed[0], tmp_path / "new"):
        with run_lock(folder):
            answer = server.run(folder)
        assert (answer["code"], answer["kind"]) == (1, "RunError")
        assert f"run folder is in use by process {os.getpid()} on " in answer["error"]


def test_a_second_launch_into_a_folder_is_refused(undisturbed: tuple[Path, float]) -> None:
    result = cli("run", str(undisturbed[0] / "recipe.yaml"), "--output", str(undisturbed[0]))
    assert result.returncode == 1
    assert f"there is a run in {undisturbed[0]} already" in result.stderr
    assert f"evomerge resume {undisturbed[0]}" in result.stderr
    assert "Traceback" not in result.stderr


def environment(**changes: str) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", **changes}


COMMAND = [sys.executable, "-c", "from evomerge.cli import main; main()"]


def cli(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment(**changes))


def interrupt(recipe: Path, folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Launch from the command line, send the signal after a generation; return exit code and stderr."""

    def hear() -> None:  # a parent may have told its children to ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        [*COMMAND, "run", str(recipe), "--output", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONHASHSEED="1", PICO_SECONDS="0.1"),
        preexec_fn=hear,  # noqa: PLW1509
    )
    while not (folder / "snapshots" / "000001.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.15)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_tells_how_to_go_on(
    server: Server, undisturbed: tuple[Path, float], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "run"
    exit_code, stderr = interrupt(server.recipe, folder, number)
    assert exit_code == code
    assert f"stopped; nothing is lost. Continue with: evomerge resume {folder}" in stderr
    assert "Traceback" not in stderr
    assert 1 <= last_state(folder).generation < 5
    # Resumed by a third process, under another hash seed than launched.
    resumed = cli("resume", str(folder), PYTHONHASHSEED="2")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert results(folder) == results(undisturbed[0])


def test_another_process_and_hash_seed_give_the_same_bytes(
    server: Server, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    launched = cli("run", str(server.recipe), "--output", str(tmp_path / "run"), PYTHONHASHSEED="3")
    assert launched.returncode == 0, launched.stderr
    assert results(tmp_path / "run") == results(undisturbed[0])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of its own, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("DISK FULL NOT TESTED with ENOSPC: mounting a tmpfs needs root (EFBIG is tested)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_is_told_and_freeing_space_mends_the_run(
    server: Server, undisturbed: tuple[Path, float], disk: Path
) -> None:
    folder = disk / "run"
    whole = size_of(undisturbed[0])
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        resize(disk, int(share * whole))
        answer = server.run(folder)
        print(share, answer["code"], answer["stages"][-1:], answer["error"], size_of(folder))
    resize(disk, 4 * whole)
    assert server.run(folder)["code"] == 0
    assert results(folder) == results(undisturbed[0])


def test_x(server: Server, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for limit in (1500, 2500, 3000, 4000, 5000, 7000, 9000, 12000, 15000, 20000, 30000):
        answer = server.run(folder, largest_file=limit)
        print(limit, answer["code"], answer["stages"][-1:], answer["error"], size_of(folder))
    assert server.run(folder)["code"] == 0
    assert results(folder) == results(undisturbed[0])
