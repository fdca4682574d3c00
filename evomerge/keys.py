"""Randomness is a value: a root seed and a path of labels, never the state of a global generator.

The same key gives the same numbers on one worker or many, under any PYTHONHASHSEED, before or after a resume;
there is no generator state to save.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

Label = int | str


@dataclass(frozen=True)
class Key:
    """A point in the tree of random streams, e.g. ``Key(0).at("generation", 3, "mutation", 5)``."""

    seed: int
    path: tuple[Label, ...] = ()

    def at(self, *labels: Label) -> Key:
        """Return the key below this one at ``labels``; distinct paths give independent streams."""
        return Key(self.seed, (*self.path, *labels))

    def integer(self) -> int:
        """Return a 63-bit integer that depends on the seed and the path only."""
        return int(self._sequence().generate_state(1, np.uint64)[0] >> np.uint64(1))

    def numpy(self) -> np.random.Generator:
        """Return a fresh numpy generator for this key."""
        return np.random.Generator(np.random.PCG64(self._sequence()))

    def torch(self) -> torch.Generator:
        """Return a fresh torch generator (CPU) for this key."""
        return torch.Generator().manual_seed(self.integer())

    @contextmanager
    def global_random(self) -> Iterator[None]:
        """Seed Python's global ``random`` from this key inside the block, and restore it after (for DEAP)."""
        before = random.getstate()
        random.seed(self.integer())
        try:
            yield
        finally:
            random.setstate(before)

    @contextmanager
    def global_numpy(self) -> Iterator[None]:
        """Seed numpy's global generator from this key inside the block, and restore it after (for DEAP's CMA-ES)."""
        before = np.random.get_state()  # noqa: NPY002 - it is the global one that DEAP uses
        np.random.seed(self.integer() % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002

    @contextmanager
    def global_torch(self) -> Iterator[None]:
        """Seed torch's global generator from this key inside the block, and restore it after (for PEFT)."""
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(self.integer())
            yield

    def _sequence(self) -> np.random.SeedSequence:
        # Length-prefixed labels, so that ("ab",) and ("a", "b") or (1,) and ("1",) cannot collide.
        text = "".join(f"{type(label).__name__}:{len(str(label))}:{label};" for label in self.path)
        words = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")
        return np.random.SeedSequence(self.seed, spawn_key=tuple(int(word) for word in words))
