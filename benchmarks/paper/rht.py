"""Does RHT help? GENOME with DARE-TIES of 2 to 10 experts, with and without the hook (Figure 7, Tables 7 and 9).

    python -m benchmarks.paper.rht                              # seconds: a tiny random model, what CI runs
    python -m benchmarks.paper.rht --setting small --experts FOLDER... --jobs 2 --budget-minutes 240

Every search with `rht` after each merge, in the modes `norm_preserving` and `paper` (`evomerge explain rht`), is paired
with the one of the same experts and seed without it: those are the searches of `saturation.py`, and are not made twice.
Paper and code give no values of the transform's parameters: these are the hook's defaults.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from benchmarks.paper.claims import SOME, Claim, Interval, judged, table, write_picture, write_results
from benchmarks.paper.saturation import Curve, about, cell, curve_of, paired
from benchmarks.paper.search import Array, crossed, performed, points
from benchmarks.paper.setting import Job, Setting, arguments
from evomerge.keys import Key
from evomerge.report.drawing import BLUE, GREY, INK, ORANGE, clean, legend, new_figure, png, title

METHOD = "GENOME, DARE-TIES"
MODES = ("norm_preserving", "paper")
KEY = Key(0).at("rht")
# CommonsenseQA with 2, 4, 6, 8, 10 experts: Table 9 (Gemma-2-2B-it, means of its 5 runs) and Table 7 (Llama-3.1-8B).
PAPER = {
    "Gemma-2-2B-it": ((64.52, 70.42, 71.14, 70.10, 69.88), (71.06, 71.36, 71.86, 71.04, 70.00)),
    "Llama-3.1-8B-Instruct": ((75.3, 75.8, 76.1, 75.7, 75.6), (76.4, 76.5, 76.4, 76.7, 76.5)),
}
PAPER_SIZES = (2, 4, 6, 8, 10)


def main() -> None:
    setting, given = arguments(__doc__ or "")
    hooks: list[dict[str, Any]] = [{}, *({"mode": mode} for mode in MODES)]
    jobs = [Job(METHOD, size, seed, hook) for seed, size, hook in product(setting.seeds, setting.sizes, hooks)]
    runs = performed(setting, jobs, given.output, given.jobs, given.budget_minutes)
    plain = curve_of(runs, METHOD)
    curves = {mode: curve_of(runs, METHOD, mode) for mode in MODES}
    effects = {mode: effect(curve, plain, KEY.at(mode)) for mode, curve in curves.items()}
    shown = [{key: value for key, value in run.items() if key != "rows"} for run in runs]
    write_picture(given.results, f"rht{setting.results}", picture(setting, effects))
    text = page(setting, plain, curves, effects)
    claims = [claim_on(mode, found, setting.by) for mode, found in effects.items()]
    write_results(
        given.results, f"rht{setting.results}", vars(setting), {"runs": shown, "effects": effects}, claims, text
    )


def effect(curve: Curve, plain: Curve, key: Key) -> dict[str, Any]:
    """Return by how much a mode changes the final score: over all pairs, and of each size; with a verdict."""
    pairs = {size: paired(curve[size], plain.get(size, {})) for size in curve}
    pairs = {size: rows for size, rows in pairs.items() if len(rows)}
    sizes = {size: {"seeds": len(rows), "difference": crossed(rows, key.at(size))} for size, rows in pairs.items()}
    every: Array | None = np.concatenate([*pairs.values()]) if pairs else None
    overall = crossed(every, key.at("all")) if every is not None else None
    norms = [
        one["norm"] / plain[size][seed]["norm"]
        for size in pairs
        for seed, one in curve[size].items()
        if seed in plain[size]
    ]
    return {
        "pairs": len(every) if every is not None else 0,
        "difference": overall,
        "sizes": sizes,
        "norm_ratio": statistics.fmean(norms) if norms else None,
        "verdict": verdict(overall[1:] if overall else None),
    }


def verdict(interval: Interval | None) -> str:
    """Return what an interval of differences shows."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "cannot tell"
    return "helps" if interval[0] > 0 else "hurts"


def claim_on(mode: str, found: Mapping[str, Any], by: str = "") -> Claim:
    changes = [
        f"{statistics.fmean(rht) - statistics.fmean(without):+.1f} ({model})" for model, (without, rht) in PAPER.items()
    ]
    interval = found["difference"]
    ours = f"{points(interval)} points, {found['pairs']} pairs" if interval else "not measured"
    return Claim(
        f"RHT, mode `{mode}`, improves the merges of {METHOD} (section 4.5, Figure 7, Tables 7 and 9){by}",
        f"CommonsenseQA, mean over 2 to 10 experts: {', '.join(changes)} points",
        ours,
        judged(interval[1:] if interval else None, low=SOME),
        "the 95 % interval over pairs of equal experts and seed, and over final rows",
    )


def page(setting: Setting, plain: Curve, curves: Mapping[str, Curve], effects: Mapping[str, Any]) -> str:
    """Return the tables in Markdown."""
    rows: list[list[Any]] = [["without", *(cell(plain.get(size, {})) for size in setting.sizes), None]]
    for mode, curve in curves.items():
        rows.append([f"`{mode}`", *(cell(curve.get(size, {})) for size in setting.sizes), None])
    for mode, found in effects.items():
        cells = [_difference(found["sizes"].get(size)) for size in setting.sizes]
        rows.append([f"`{mode}` minus without", *cells, points(found["difference"]) if found["difference"] else None])
    for model, (without, rht) in PAPER.items():
        changes = dict(zip(PAPER_SIZES, np.subtract(rht, without), strict=True))
        cells = [f"{changes[size]:+.1f}" if size in changes else None for size in setting.sizes]
        mean = f"{np.mean([*changes.values()]):+.1f}"
        rows.append([f"the paper, {model}: RHT minus GENOME", *cells, mean])
    lines = [
        f"{setting.measure}, on the final split, mean ± standard deviation over seeds (how many). {about(setting)}",
        table(["experts", *map(str, setting.sizes), "all"], rows),
        "In brackets: 95 % intervals of the paired differences, over pairs and final rows.",
        *(f"- {sentence(mode, found)}" for mode, found in effects.items()),
    ]
    return "\n\n".join(lines)


def sentence(mode: str, found: Mapping[str, Any]) -> str:
    """Return what was found of a mode."""
    if not found["pairs"]:
        return f"RHT, mode `{mode}`: {found['verdict']}: no pair was measured."
    said = f"{found['verdict']}: {points(found['difference'])} points in {found['pairs']} pairs"
    return f"RHT, mode `{mode}`: {said}; the winner's delta-W is {found['norm_ratio']:.2f} times as long as without."


def _difference(found: Mapping[str, Any] | None) -> str | None:
    return points(found["difference"]) if found else None


def picture(setting: Setting, effects: Mapping[str, Any]) -> bytes:
    """Draw the paired differences of each mode against the number of experts, with intervals."""
    figure = new_figure(8, 4.2)
    axes = figure.add_subplot()
    for shift, (mode, found), colour in zip((-0.15, 0.15), effects.items(), (BLUE, ORANGE), strict=True):
        sizes = found["sizes"]
        means, lows, highs = np.array([100 * np.array(one["difference"]) for one in sizes.values()]).reshape(-1, 3).T
        places = [size + shift for size in sizes]
        axes.errorbar(places, means, (means - lows, highs - means), fmt="o", color=colour, capsize=3, label=mode)
    for (model, (without, rht)), style in zip(PAPER.items(), ("x", "+"), strict=True):
        axes.plot(PAPER_SIZES, np.subtract(rht, without), style, color=INK, label=f"the paper, {model}")
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xticks(sorted({*setting.sizes, *PAPER_SIZES}))
    axes.set_xlabel("experts")
    axes.set_ylabel("with RHT minus without, points")
    clean(axes, "y")
    legend(axes, fontsize=8)
    title(figure, "Does RHT help GENOME with DARE-TIES?")
    return png(figure)


if __name__ == "__main__":
    main()
