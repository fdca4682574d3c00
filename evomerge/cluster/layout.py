"""Which workers a cluster has room for, and what each of them gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import RunError


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its address, cores and GPUs."""

    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Layout:
    """What the workers get.

    Attributes:
        nodes: the machines.
        workers: how many.
        gpus: of each worker; a fraction where several share one.
        cpus: that Ray counts for each worker; a fraction where there are more workers than cores.
    """

    nodes: tuple[Node, ...]
    workers: int
    gpus: float
    cpus: float

    @property
    def text(self) -> str:
        """Return it in words."""
        devices = f"{self.gpus:g} GPU" if self.gpus else "no GPU"
        here = sum(node.gpus for node in self.nodes)
        room = f"{len(self.nodes)} node{'s' * (len(self.nodes) > 1)}, {sum(n.cpus for n in self.nodes):g} cores"
        each = f"{self.workers} worker{'s' * (self.workers > 1)} with {devices} each"
        return f"{each}, on {room}, {here:g} GPU{'s' * (here != 1)}"


def nodes_of(ray: Any) -> tuple[Node, ...]:
    """Return the machines of the cluster that this process has joined."""
    living = [node for node in ray.nodes() if node["Alive"]]
    return tuple(
        Node(node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in living
    )


def lay_out(nodes: Sequence[Node], workers: int | None, gpus: float, threads: int) -> Layout:
    """Return who gets what.

    Args:
        nodes: of the cluster.
        workers: how many are asked for; ``None`` for as many as have room.
        gpus: of each worker.
        threads: of each worker.

    Raises:
        RunError: there are not so many GPUs.
    """
    # A head node may have neither GPUs nor cores for workers.
    able = [node for node in nodes if (node.gpus if gpus else node.cpus)]
    room = sum(_room(node.gpus, gpus) if gpus else max(1, int(node.cpus // threads)) for node in able)
    if (gpus or not room) and (workers or 1) > room:
        each = f"{gpus:g} GPU each" if gpus else "a core each"
        has = ", ".join(f"{node.address}: {node.gpus if gpus else node.cpus:g}" for node in nodes)
        raise RunError(
            f"the cluster has room for {room} workers with {each}, {workers or 1} are asked for",
            where=f"evaluator.workers ({'GPUs' if gpus else 'cores'} by node: {has})",
            fix="Ask for fewer `workers`, for less than one GPU each (`gpus_per_worker: 0.5`), or add nodes.",
        )
    count = workers or room
    # More workers than cores are slow, not wrong: those who wait for something need none.
    fits = sum(int(node.cpus // threads) for node in able)
    share = threads if count <= fits else math.floor(1e4 * min(node.cpus for node in able) * len(able) / count) / 1e4
    return Layout(tuple(nodes), count, gpus, min(share, 1.0) if gpus else share)


def _room(gpus: float, each: float) -> int:
    """Return how many workers a node's GPUs hold: fractions share one GPU, and no worker is on two halves."""
    return int(gpus) * int(1 / each + 1e-9) if each < 1 else int(gpus // each)
