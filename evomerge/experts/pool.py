"""The pool: experts of one base, checked together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import EvomergeError, ExpertError, Problems
from evomerge.experts.adapter import Adapter, read_adapter
from evomerge.types import digest_json


@dataclass(frozen=True, eq=False)
class Pool:
    """Experts in the order given; ``modules`` maps each module that any of them adapts to ``(out, in)``."""

    adapters: tuple[Adapter, ...]
    base: str
    modules: Mapping[str, tuple[int, int]]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the experts' names."""
        return tuple(adapter.name for adapter in self.adapters)

    @property
    def digest(self) -> str:
        """Return the digest of the experts' contents, in order; names and paths do not matter."""
        return digest_json([adapter.digest for adapter in self.adapters])


def load_pool(folders: Sequence[Path | str], base: str | None = None, names: Sequence[str] | None = None) -> Pool:
    """Read the experts and check that they can be merged.

    Args:
        folders: PEFT folders, in the order that the pool keeps.
        base: hub name or folder of the base they must all have; the first expert's where it is not given.
        names: of the experts; by default their folders' names.

    Raises:
        Problems: everything that is wrong with any of them, or between them, at once.
    """
    if not folders:
        raise Problems([ExpertError("The pool is empty", where="experts", fix="Give at least one adapter folder.")])
    problems: list[EvomergeError] = []
    adapters: list[Adapter] = []
    names = [Path(folder).resolve().name for folder in folders] if names is None else names
    for folder, name in zip(folders, names, strict=True):
        try:
            adapters.append(read_adapter(folder, name))
        except Problems as error:
            problems.extend(error.problems)
        except ExpertError as error:
            problems.append(error)
    problems += _name_problems(folders, names)
    if adapters:
        base = adapters[0].base if base is None else str(base)
        problems += _base_problems(adapters, base)
        problems += _shape_problems(adapters)
    if problems or base is None:
        raise Problems(problems)
    return Pool(tuple(adapters), base, _modules(adapters))


def same_base(one: str, other: str) -> bool:
    """Return whether two names mean one base: equal hub names, or paths to one folder."""
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _modules(adapters: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    found = {m: (f.B.shape[0], f.A.shape[1]) for adapter in adapters for m, f in adapter.factors.items()}
    return dict(sorted(found.items()))


def _name_problems(folders: Sequence[Path | str], names: Sequence[str]) -> list[EvomergeError]:
    places: dict[str, list[str]] = {}
    for folder, name in zip(folders, names, strict=True):
        places.setdefault(name, []).append(str(folder))
    return [
        ExpertError(
            f"{len(paths)} experts have one name, {name!r}",
            where=", ".join(paths),
            fix="Give each folder once, and rename one of two that share a name.",
        )
        for name, paths in sorted(places.items())
        if len(paths) > 1
    ]


def _base_problems(adapters: Sequence[Adapter], base: str) -> list[EvomergeError]:
    return [
        ExpertError(
            f"Expert {adapter.name!r} was trained on another base: {adapter.base!r}, not {base!r}",
            where=f"{adapter.path}: base_model_name_or_path",
            fix="Leave it out; or, if it is the same model under another name, write that name there.",
        )
        for adapter in adapters
        if not same_base(adapter.base, base)
    ]


def _shape_problems(adapters: Sequence[Adapter]) -> list[EvomergeError]:
    """Compare every expert with the first that has the module; name the first module that differs."""
    problems: list[EvomergeError] = []
    shapes: dict[str, tuple[tuple[int, int], str]] = {}
    for adapter in adapters:
        differs = False
        for module, shape in _modules([adapter]).items():
            known, owner = shapes.setdefault(module, (shape, adapter.name))
            if shape != known and not differs:
                differs = True
                cause = f"{module} is {list(shape)} in expert {adapter.name!r} but {list(known)} in {owner!r}"
                problems.append(
                    ExpertError(cause, where=module, fix="They belong to bases of different sizes: leave one out.")
                )
    return problems
