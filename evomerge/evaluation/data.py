"""The rows of a task in three splits: experts train on one, the search sees one, the report opens the last once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.errors import FitnessError
from evomerge.types import SPLITS, Split, digest_json

Row = Mapping[str, Any]
Rows = Mapping[Split, Sequence[Row]]


@dataclass(frozen=True)
class Data:
    """The rows of a task by split, loaded at first use.

    Made by ``Data.by_entity`` (rows in memory), ``Data.files`` (JSON Lines) or ``Data.hub`` (Hugging Face).

    Attributes:
        load: returns the rows of every split.
        entity: the field that must not be shared between splits; without one, whole rows are compared.
    """

    load: Callable[[], Rows]
    entity: str | None = None

    @classmethod
    def by_entity(
        cls,
        rows: Callable[[], Iterable[Row]],
        entity: str,
        *,
        search: int,
        final: int,
        train_share: float = 0.5,
    ) -> Data:
        """Split rows so that no entity is in two splits, and take at most ``search`` and ``final`` rows of those.

        An entity's split depends on its name alone (a hash in [0, 1) against ``train_share`` and the middle of the
        rest), so it is the same in every task, on every machine, and when other rows come or go.
        """

        def load() -> Rows:
            splits: dict[Split, list[Row]] = {split: [] for split in SPLITS}
            middle = (1 + train_share) / 2
            for row in sorted(rows(), key=lambda row: _order(digest_json(row))):
                place = _order(str(row[entity]))
                splits["train" if place < train_share else "search" if place < middle else "final"].append(row)
            return {
                "train": splits["train"],
                "search": splits["search"][:search],
                "final": splits["final"][:final],
            }

        return cls(load, entity)

    @classmethod
    def files(cls, *, search: str, final: str, train: str | None = None, entity: str | None = None) -> Data:
        """Read JSON Lines files, one a split; relative paths are taken from the working directory."""

        def load() -> Rows:
            return {
                "train": _json_lines(train) if train else [],
                "search": _json_lines(search),
                "final": _json_lines(final),
            }

        return cls(load, entity)

    @classmethod
    def hub(cls, name: str, *, search: str, final: str, train: str | None = None, config: str | None = None) -> Data:
        """Read a data set of the Hugging Face hub; splits in its own notation, e.g. ``validation[:200]``."""

        def load() -> Rows:
            from datasets import load_dataset

            wanted: dict[Split, str | None] = {"train": train, "search": search, "final": final}
            return {
                split: list(load_dataset(name, config, split=text)) if text else [] for split, text in wanted.items()
            }

        return cls(load)

    def rows(self, split: Split) -> Sequence[Row]:
        """Return the rows of one split, in a fixed order."""
        return self._rows[split]

    @cached_property
    def _rows(self) -> Rows:
        return self.load()

    @cached_property
    def digest(self) -> str:
        """Return the digest of all rows: another data release is another fitness."""
        return digest_json({split: list(self._rows[split]) for split in SPLITS})

    def check(self, name: str) -> list[FitnessError]:
        """Return what is wrong with the splits: an empty one, or one that shares entities with another."""
        problems = [
            FitnessError(
                f"fitness {name!r} has no rows in its {split!r} split",
                where=f"{name}: data",
                fix="Give the split at least one row; a few hundred make a useful fitness.",
            )
            for split in SPLITS[1:]
            if not self.rows(split)
        ]
        pairs: tuple[tuple[Split, Split], ...] = (("search", "final"), ("train", "search"), ("train", "final"))
        for left, right in pairs:
            shared = self._entities(left) & self._entities(right)
            if shared:
                noun = f"{'value' if self.entity else 'row'}{'s' if len(shared) > 1 else ''}"
                what = f"{len(shared)} {noun}" + (f" of {self.entity!r}" if self.entity else "")
                problems.append(
                    FitnessError(
                        f"fitness {name!r} shares {what} between {left!r} and {right!r}, e.g. {min(shared)}",
                        where=f"{name}: data",
                        fix="Make the splits disjoint, or scores of the final split mean nothing.",
                    )
                )
        return problems

    def _entities(self, split: Split) -> set[str]:
        if self.entity is None:
            return {digest_json(row) for row in self.rows(split)}
        return {str(row[self.entity]) for row in self.rows(split)}


def _order(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def _json_lines(path: str) -> Sequence[Row]:
    # Not through `datasets`: its reader turns texts that look like dates into datetimes, and so changes answers.
    if not Path(path).is_file():
        raise FitnessError(f"data file not found: {path}", where=path, fix="Give the path of a JSON Lines file.")
    rows: list[Row] = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_json_row(line, f"{path}, line {number}"))
    return rows


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise FitnessError(f"not JSON: {error}", where=where, fix="Write one JSON mapping a line.") from None
    if not isinstance(row, dict):
        raise FitnessError(f"not a mapping: {line.strip()[:60]}", where=where, fix="Write one JSON mapping a line.")
    return row
