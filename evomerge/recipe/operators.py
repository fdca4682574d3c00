"""Which registry an operator of a recipe is looked up in, by its place."""

from __future__ import annotations

from typing import Any

from evomerge.registry import Registry
from evomerge.selection.parents import PARENTS
from evomerge.selection.survivors import SURVIVORS
from evomerge.variation.merge import MERGES
from evomerge.variation.mutate import MUTATIONS

REGISTRIES: dict[str, Registry[Any, Any]] = {
    "merge": MERGES,
    "baselines": MERGES,
    "select": PARENTS,
    "survivors": SURVIVORS,
    "mutation": MUTATIONS,
}


def registry_at(place: tuple[str | int, ...]) -> Registry[Any, Any]:
    """Return the registry for the operator at a place such as ``("strategy", "crossover", "merge")``."""
    return next(REGISTRIES[str(part)] for part in reversed(place) if part in REGISTRIES)
