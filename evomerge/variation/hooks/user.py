"""A user's hook: a function in a Python file, checked like any operator."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.plugins import import_file
from evomerge.registry import Operator, schema_of

_PATH = re.compile(r"(?P<file>.+\.py)(:(?P<function>\w+))?")
_EXAMPLE = "Define `def hook(child, parents, space, key, *, strength: float = 1.0): ...` and return the new child."


@dataclass(frozen=True)
class UserHook(Operator[..., Tensor]):
    """An operator from a user's file; ``digest`` covers the file and the helpers beside it that it imports."""

    digest: str = ""


def is_file(name: str) -> bool:
    """Return whether a hook's name is a path: ``my_hook.py`` or ``my_hook.py:function``."""
    return _PATH.fullmatch(name) is not None


def absolute(name: str) -> str:
    """Return the name with its path made absolute; a name that is no path, or of no file, stays as it is."""
    found = _PATH.fullmatch(name)
    if found is None or not (path := Path(found["file"]).expanduser()).is_file():
        return name
    return f"{path.resolve()}{found[2] or ''}"


def load_hook(name: str) -> UserHook:
    """Load a hook by its path.

    Raises:
        RecipeError: no such file, it does not import, or it has no function that can be a hook.
    """
    found = _PATH.fullmatch(name)
    assert found is not None, "the caller has asked is_file"
    source = Path(found["file"]).expanduser().resolve()
    if not source.is_file():
        fix = "Give the path of a .py file; a relative one counts from the working directory."
        raise RecipeError(f"there is no hook file {found['file']}", where=str(source), fix=fix)
    plugin = import_file(source, "hook", RecipeError)
    title = found["function"] or "hook"
    function = getattr(plugin.module, title, None)
    if function is None:
        raise RecipeError(f"{source.name} defines no `{title}`", where=str(source), fix=_EXAMPLE)
    if not inspect.isfunction(function) or not _takes_four(function):
        cause = f"`{title}` in {source.name} cannot be called with (child, parents, space, key)"
        raise RecipeError(cause, where=str(source), fix=_EXAMPLE)
    try:
        schema = schema_of(function)
    except Exception as error:
        cause = f"the parameters of `{title}` in {source.name} cannot be checked: {type(error).__name__}: {error}"
        fix = "Declare each after a `*`, with a type: `*, strength: float = 1.0`."
        raise RecipeError(cause, where=str(source), fix=fix) from error
    return UserHook(name, function, f"none; a user's function in {source}", schema, digest=plugin.digest)


def _takes_four(function: Any) -> bool:
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    keywords = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    try:
        signature.bind(None, None, None, None, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True
