"""Outcomes by key, on disk: nothing that was evaluated once, failures included, is evaluated again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoint.codec import decode_outcome, encode_outcome
from evomerge.checkpoint.jsonl import damaged_line, open_lines
from evomerge.types import Outcome


@dataclass(frozen=True)
class CachedOutcome:
    """An outcome and the generation in which it was first evaluated."""

    outcome: Outcome
    born: int


class OutcomeCache:
    """A map from keys to outcomes, append-only, in JSON Lines; the first write of a key wins.

    The caller makes the key from everything the outcome depends on: genome, fitness, split, decoding.
    """

    def __init__(self, path: Path) -> None:
        """Read the cache, without a torn last line; raise ``RunError`` if an earlier line is damaged."""
        records, self._file = open_lines(path)
        self._cached: dict[str, CachedOutcome] = {}
        for number, record in enumerate(records, start=1):
            try:
                cached = CachedOutcome(decode_outcome(record["outcome"]), record["born"])
                self._cached.setdefault(record["key"], cached)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise damaged_line(path, number, f"it is not a cached outcome ({error!r})") from error

    def get(self, key: str) -> CachedOutcome | None:
        """Return what is known for the key, or None."""
        return self._cached.get(key)

    def put(self, key: str, outcome: Outcome, born: int) -> None:
        """Remember the outcome, durably; a key that is known keeps its first outcome."""
        if key in self._cached:
            return
        self._file.append({"key": key, "born": born, "outcome": encode_outcome(outcome)})
        self._cached[key] = CachedOutcome(outcome, born)
