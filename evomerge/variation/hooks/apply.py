"""Hooks with their parameters bound, one after the other, behind a merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import EvomergeError, RunError
from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.userfile import UserOperator
from evomerge.variation.hooks import HOOKS, HookSpace

Merge = Callable[..., Tensor]


@dataclass(frozen=True)
class Hook:
    """A hook with its parameters bound.

    Attributes:
        name: as the recipe gives it.
        function: ``(child, parents, space, key) -> child``.
        digest: of a user's file; empty for a shipped hook.
    """

    name: str
    function: Callable[..., Any]
    digest: str = ""

    def __call__(self, child: Tensor, parents: Tensor, space: HookSpace, key: Key) -> Tensor:
        """Return what the hook makes of the child, ``[d]`` in float32.

        Raises:
            RunError: a user's function fails, or what a hook returns is no genome of finite numbers.
        """
        if self.digest:
            # A user's function that works in place must harm nobody else's tensors.
            child, parents = child.clone(), parents.clone()
        try:
            result = self.function(child, parents, space, key)
        except EvomergeError:
            raise
        except Exception as error:
            raise self._refuse(f"hook {self.name!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(result, Tensor) or not result.is_floating_point() or result.shape != child.shape:
            raise self._refuse(f"hook {self.name!r} must return a float tensor {list(child.shape)}; {_got(result)}")
        genome = result.detach().to(child.device, torch.float32)
        if bad := _not_finite(genome, space.segments):
            raise self._refuse(f"hook {self.name!r} made NaN or Inf in tensor {bad!r}")
        return genome

    def _refuse(self, cause: str) -> RunError:
        fix = f"Give it milder parameters; see `evomerge explain {self.name}`."
        if self.digest:
            fix = "Mend its file; `evomerge resume` with --allow-changes continues a run with it."
        return RunError(cause, where="post_merge", fix=fix)


def bind_hook(name: str, parameters: Mapping[str, Any]) -> Hook:
    """Return a shipped hook by name, or a user's by path, with its parameters checked and bound.

    Raises:
        RecipeError: there is no such hook.
        Problems: every bad parameter.
    """
    operator = HOOKS[name]
    return Hook(name, operator.bind(**parameters), operator.digest if isinstance(operator, UserOperator) else "")


def apply_hooks(child: Tensor, parents: Tensor, space: HookSpace, hooks: Sequence[Hook], key: Key) -> Tensor:
    """Return the child after all hooks, in their order; hook i draws from ``key.at("hook", i)``.

    Shapes: child ``[d]``, parents ``[n, d]`` -> ``[d]``; float32 if there is any hook.

    Raises:
        RunError: a hook fails, or its result is no genome of finite numbers.
    """
    for number, hook in enumerate(hooks):
        child = hook(child, parents, space, key.at("hook", number))
    return child


def after(merge: Merge, hooks: Sequence[Hook], space: HookSpace) -> Merge:
    """Return a bound merge that the hooks follow; without hooks, the merge itself.

    The merge gets the same key as without hooks, so that both give the same child up to here.
    """
    if not hooks:
        return merge

    def merge_and_hooks(stack: Tensor, weights: Tensor, segments: Sequence[Segment], key: Key) -> Tensor:
        return apply_hooks(merge(stack, weights, segments, key), stack, space, hooks, key)

    return merge_and_hooks


def _got(result: Any) -> str:
    if isinstance(result, Tensor):
        return f"it returned one of {result.dtype}, {list(result.shape)}"
    return f"it returned {type(result).__name__} {str(result)[:60]!r}"


def _not_finite(genome: Tensor, segments: Sequence[Segment]) -> str:
    """Return the name of the first tensor that holds NaN or Inf; empty if none does."""
    if bool(torch.isfinite(genome).all()):
        return ""
    bad = (s.name for s in segments if not bool(torch.isfinite(genome[s.start : s.stop]).all()))
    return next(bad, "outside all segments")
