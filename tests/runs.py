"""A complete small run on the pico base: what launch, resume and the command line are tested with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FITNESS = '''"""How likely the model finds each row's ending: smooth, so that a search can climb it."""

import math

from evomerge import Data, Model

ROWS = {split: [{"text": f"{split} {i} abc", "end": "xyz"[i % 3]} for i in range(6)] for split in ("search", "final")}


class Likelihood:
    data = Data(lambda: {"train": [], **ROWS}, entity="text")

    def __call__(self, model: Model, split: str) -> list[float]:
        rows = self.data.rows(split)
        return [math.exp(x / 4) for x in model.loglikelihood([(row["text"], row["end"]) for row in rows])]


fitness = Likelihood()
'''


def write_run(folder: Path, base: Path, experts: list[Path], **changes: Any) -> Path:
    """Write recipe and fitness file; ``changes`` replace whole sections. Return the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    fitness = folder / "likely.py"
    if not fitness.exists():
        fitness.write_text(FITNESS)
    recipe: Mapping[str, Any] = {
        "name": "pico",
        "base": str(base),
        "experts": [str(expert) for expert in experts],
        "fitness": [str(fitness)],
        "strategy": {
            "population": 5,
            "crossover": {"merge": {"name": "dare_ties", "density": 0.7}},
            "mutation": {"rate": 0.3, "gene_rate": 0.2, "sigma": 0.5},
        },
        "stop": {"generations": 3},
        "evaluator": {"dtype": "float32", "device": "cpu"},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
