"""What does evolution gain on the quickstart? The final split's table for several seeds of the search.

Run after `make quickstart` (the experts must exist):

    .venv/bin/python benchmarks/quickstart_gain.py

The experts are the same for every seed; what differs is the search. Each run is resumable: a seed that is finished is
not run again. The last line is JSON; the same goes to benchmarks/results/quickstart_gain.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from evomerge.checkpoint.run import environment
from evomerge.cli.display import Display
from evomerge.files import write_json
from evomerge.launch import Finished, launch, resume
from evomerge.recipe.load import load_recipe
from evomerge.report.table import FinalTable

RECIPE = Path("populations/quickstart.yaml")
RESULT = Path("benchmarks/results/quickstart_gain.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart_gain"))
    arguments = parser.parse_args()
    seeds = {str(seed): measure(seed, arguments.runs / f"seed-{seed}") for seed in arguments.seeds}
    result = {"benchmark": "quickstart_gain", "date": time.strftime("%Y-%m-%d"), **summary(seeds), "seeds": seeds}
    write_json(RESULT, {**result, "environment": environment()})
    print(json.dumps(result))


def measure(seed: int, folder: Path) -> dict[str, float]:
    """Return the mean over tasks of each row of the final table, in %, and the seconds it took."""
    start = time.perf_counter()
    display = Display()
    if (folder / "manifest.json").exists():
        finished = resume(folder, display)
    else:
        finished = launch(load_recipe(RECIPE, [f"seed={seed}"]), folder, display)
    display.finished(finished)
    return {**means(finished.table), **gains(finished), "seconds": round(time.perf_counter() - start, 1)}


def means(table: FinalTable) -> dict[str, float]:
    """Return the mean over tasks of each row, in %."""
    return {row.name: round(100 * table.mean(row), 2) for row in table.rows}


def gains(finished: Finished) -> dict[str, float]:
    """Return by how many points the evolved adapter beats the best expert and the best uniform merge."""
    table = finished.table
    best = {kind: max(table.mean(row) for row in table.rows if row.kind == kind) for kind in ("expert", "merge")}
    evolved = next(table.mean(row) for row in table.rows if row.kind == "evolved")
    return {f"over_best_{kind}": round(100 * (evolved - value), 2) for kind, value in best.items()}


def summary(seeds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over the seeds of everything that was measured."""
    rows = list(next(iter(seeds.values())))
    columns = {row: [values[row] for values in seeds.values()] for row in rows}
    return {
        "mean": {row: round(statistics.fmean(values), 2) for row, values in columns.items()},
        "sd": {row: round(statistics.stdev(values), 2) if len(values) > 1 else 0.0 for row, values in columns.items()},
    }


if __name__ == "__main__":
    main()
