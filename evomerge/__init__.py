"""evomerge: evolve language models by merging.

The names that a fitness file or a notebook needs are here; each is imported at first use, so that
``import evomerge`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from evomerge.errors import EvomergeError
    from evomerge.evaluation.data import Data
    from evomerge.evaluation.model import Model
    from evomerge.evaluation.scorers import Generation, MultipleChoice
    from evomerge.keys import Key
    from evomerge.types import Failure, Score

_WHERE = {
    "Data": "evomerge.evaluation.data",
    "EvomergeError": "evomerge.errors",
    "Failure": "evomerge.types",
    "Generation": "evomerge.evaluation.scorers",
    "Key": "evomerge.keys",
    "Model": "evomerge.evaluation.model",
    "MultipleChoice": "evomerge.evaluation.scorers",
    "Score": "evomerge.types",
}

__all__ = [
    "Data",
    "EvomergeError",
    "Failure",
    "Generation",
    "Key",
    "Model",
    "MultipleChoice",
    "Score",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
