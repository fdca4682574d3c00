"""Train the experts of a recipe, one folder each; what exists is kept, a kill costs one expert at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from evomerge.errors import ExpertError, FitnessError
from evomerge.evaluation.fitness import Task
from evomerge.experts.adapter import read_adapter
from evomerge.files import new_folder
from evomerge.keys import Key
from evomerge.training.lora import LoraSpec, Pair, attach_lora, train_lora


@dataclass(frozen=True)
class Job:
    """One expert to train: its name, the task whose `train` split it learns, and how."""

    name: str
    task: Task
    spec: LoraSpec


class Follow(Protocol):
    """Who follows a training: a progress display or a test."""

    def stage(self, text: str) -> None:
        """Take note of what is being done before the first expert."""
        ...

    def expert(self, name: str, number: int, total: int) -> None:
        """Take note that an expert begins."""
        ...

    def step(self, done: int, total: int, loss: float) -> None:
        """Take note of a training step."""
        ...

    def kept(self, name: str) -> None:
        """Take note of an expert that existed already."""
        ...


def train_experts(
    jobs: Sequence[Job], folder: Path, load: Callable[[], tuple[Any, Any]], key: Key, follow: Follow
) -> list[Path]:
    """Train what does not exist yet; each adapter appears complete or not at all.

    Args:
        jobs: the experts, in order.
        folder: gets one PEFT folder an expert.
        load: returns a fresh (network, tokenizer); called once for each expert that is trained.
        key: every expert draws from its own branch of it, so the order does not matter.
        follow: is told what happens.

    Returns:
        The experts' folders, in the order of the jobs.

    Raises:
        ExpertError: an existing folder is not a usable adapter, or was trained in another way.
        FitnessError: a task has no training rows.
    """
    for job in jobs:
        _pairs(job)  # all tasks are checked before the first long training
    for number, job in enumerate(jobs, start=1):
        target = folder / job.name
        if target.is_dir():
            _check_existing(target, job.spec)
            follow.kept(job.name)
            continue
        follow.expert(job.name, number, len(jobs))
        network, tokenizer = load()
        at = key.at("train", job.name)
        adapted = attach_lora(network, job.spec, at)
        train_lora(adapted, tokenizer, _pairs(job), job.spec, at, follow.step)
        with new_folder(target) as staged:
            adapted.save_pretrained(staged)
    return [folder / job.name for job in jobs]


def _pairs(job: Job) -> list[Pair]:
    pairs = getattr(job.task.function, "pairs", None)
    found: list[Pair] = pairs("train") if pairs else []
    if not found:
        raise FitnessError(
            f"task {job.task.name!r} has no training rows for expert {job.name!r}",
            where=str(job.task.source),
            fix="Give its data a `train` split, and use a scorer that knows the answers (Generation, MultipleChoice).",
        )
    return found


def _check_existing(folder: Path, spec: LoraSpec) -> None:
    config = read_adapter(folder).config
    wanted: Mapping[str, Any] = asdict(spec)
    got = {"rank": config["r"], "alpha": config["lora_alpha"], "rslora": config.get("use_rslora", False)}
    got["target_modules"] = tuple(sorted(config["target_modules"]))
    for name, value in got.items():
        expected = tuple(sorted(wanted[name])) if name == "target_modules" else wanted[name]
        if value != expected:
            raise ExpertError(
                f"expert {folder.name!r} exists with {name} {value}, the recipe says {expected}",
                where=str(folder),
                fix="Remove the folder to train it anew, or correct the recipe.",
            )
