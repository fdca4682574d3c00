"""Hooks after a merge: ``hook(child, parents, space, key, **parameters) -> child``.

Shapes: child ``[d]``, parents ``[n, d]`` (what was merged), result ``[d]`` in float32. No argument is changed. A hook
of one's own is named by its file: ``path/to/my_hook.py`` (its function ``hook``), or ``path/to/my_hook.py:function``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.registry import Operator, Registry
from evomerge.types import Segment
from evomerge.variation.hooks.user import is_file, load_hook


class HookSpace(Protocol):
    """What a hook may know of the coordinates that the child lives in; every genome space is one."""

    @property
    def segments(self) -> Sequence[Segment]:
        """Return which slice of a genome is which tensor."""
        ...

    def norm(self, genome: Tensor) -> float:
        """Return the Frobenius norm of delta-W."""
        ...

    def scale(self, genome: Tensor, factor: float) -> Tensor:
        """Return the genome whose delta-W is ``factor`` times this one's."""
        ...


class HookRegistry(Registry[..., Tensor]):
    """The shipped hooks by name, and any user's by the path of its file."""

    def __getitem__(self, name: str) -> Operator[..., Tensor]:
        """Return the hook; a user's file is loaded anew.

        Raises:
            RecipeError: there is no such hook, or its file does not give one.
        """
        if is_file(name):
            return load_hook(name)
        try:
            return super().__getitem__(name)
        except RecipeError as error:
            fix = f"{error.fix} Or give the path of a file: my_hook.py."
            raise RecipeError(error.cause, where=error.where, fix=fix) from None


HOOKS = HookRegistry(
    "hook",
    (
        "evomerge.variation.hooks.drop",
        "evomerge.variation.hooks.norm",
        "evomerge.variation.hooks.rht",
    ),
)
