"""The scaling law of merging, from the folder of a finished ``evomerge plan``.

    .venv/bin/python -m benchmarks.paper.law --plan FOLDER

Reads ``study.json`` there: the fits of L(k) = L_inf + A / (k + b), the forecast from three values of k, and every
loss. Nothing is measured here. The claims are those of the abstract of *Model Merging Scaling Laws in Large Language
Models* (2025), which gives no numbers: the thresholds are ours, and stand beside the claims.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.claims import RESULTS, SOME, Claim, Interval, judged, shown, table, write_picture, write_results
from evomerge.errors import RunError
from evomerge.report.drawing import BLUE, GREEN, GREY, INK, ORANGE, clean, legend, new_figure, png, title

TIGHT, MISSED, EARLY = 0.9, 0.1, 0.5
Losses = Mapping[str, Sequence[float]]
"""One loss a subset, by k as text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True, help="folder that `evomerge plan` wrote")
    parser.add_argument("--setting", choices=("fast", "small"), default="small", help="what the plan was of")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    study, about = read(given.plan, "study.json"), read(given.plan, "losses.jsonl")
    methods = [name.removesuffix(" all") for name in study["losses"] if name.endswith(" all")]
    losses: dict[str, Losses] = {method: study["losses"][f"{method} all"] for method in methods}
    spreads = {method: slope(found) for method, found in losses.items()}
    setting = {"setting": given.setting, "experts": list(about.get("experts", ())), "seeds": [about.get("seed")]}
    setting |= {"base": Path(str(about.get("base"))).name, "tasks": list(about.get("tasks", ()))}
    data = {"fits": study["the-law"], "forecasts": study["three-values-of-k"], "slopes": spreads, "losses": losses}
    write_picture(given.results, "law", picture(losses, study["the-law"]))
    write_results(given.results, "law", setting, data, claims(study, losses, spreads), text(study, losses, spreads))


def read(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON file of the plan, or the first line of a JSON Lines file."""
    path = folder / name
    if not path.is_file():
        cause = f"there is no {name} in {folder}"
        raise RunError(cause, where=str(path), fix="Give the folder of a finished `evomerge plan`.")
    text = path.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text.partition("\n")[0] if name.endswith("l") else text)
    return found


def slope(losses: Losses) -> tuple[float, Interval] | None:
    """Return the slope of log variance over subsets against log k, and its 95 % interval; -1 is a fall as 1/k.

    Least squares with the variance ``2 / (m - 1)`` of the logarithm of a variance of m values. ``None`` below two k
    with three subsets and a variance above 0.
    """
    rows = [(math.log(int(k)), math.log(np.var(row, ddof=1)), (len(row) - 1) / 2) for k, row in usable(losses).items()]
    if len(rows) < 2:
        return None
    x, y, weight = np.array(rows).T
    x = x - np.average(x, weights=weight)
    total = float((weight * x * x).sum())
    found = float((weight * x * y).sum()) / total
    half = 1.96 / math.sqrt(total)
    return found, (found - half, found + half)


def usable(losses: Losses) -> dict[str, Sequence[float]]:
    return {k: row for k, row in losses.items() if len(row) > 2 and np.var(row) > 0}


def claims(
    study: Mapping[str, Any], losses: Mapping[str, Losses], slopes: Mapping[str, tuple[float, Interval] | None]
) -> list[Claim]:
    """Return the verdicts: a fall and a shrinking spread method by method, the rest over all methods."""
    fits = {method: study["the-law"][f"{method} all"] for method in losses}
    found = [falls(method, fit) for method, fit in fits.items()]
    for kind, words in (("in", "in-domain"), ("cross", "cross-domain")):
        named = {method: study["the-law"].get(f"{method} {kind}", {}) for method in losses}
        found += [falls(f"{method}, {words}", fit) for method, fit in named.items()]
    found += [tight(fits), early(losses), forecast(study["three-values-of-k"], losses)]
    return [*found, *(shrinks(method, one) for method, one in slopes.items())]


def falls(method: str, fit: Mapping[str, Any]) -> Claim:
    A = fit.get("variables", {}).get("A") or {"value": None, "interval": None}
    return Claim(
        f"Scaling law: the loss falls with the number of experts, roughly as 1/k ({method})",
        "A > 0, no number",
        f"A = {shown(A['value'])} {shown(A['interval'])} nats",
        judged(A["interval"] and tuple(A["interval"]), low=SOME),
        f"A of L(k) = L_inf + A / (k + b); the interval is over subsets. {'; '.join(fit.get('notes', ()))}".strip(),
    )


def tight(fits: Mapping[str, Mapping[str, Any]]) -> Claim:
    known = {method: fit["r2"] for method, fit in fits.items() if fit.get("r2") is not None}
    said = ", ".join(f"{method} {value:.3f}" for method, value in known.items())
    return Claim(
        "Scaling law: the law fits tightly across methods",
        f"no number; here R² of {TIGHT} at least for each",
        f"R²: {said or 'not known'}",
        judged(extremes(known.values()), low=TIGHT),
        "R² over the means at each k. It asks for a loss that changes with k by more than its noise.",
    )


def early(losses: Mapping[str, Losses]) -> Claim:
    shares = {method: share for method, found in losses.items() if (share := early_share(found)) is not None}
    said = ", ".join(f"{method} {share:.0%}" for method, share in shares.items())
    return Claim(
        "Scaling law: most gains arrive early",
        f"no number; here more than {EARLY:.0%} of the whole fall at half of the largest k",
        said or "no method's loss falls",
        judged(extremes(shares.values()), low=EARLY),
        "Means over subsets, all methods whose loss falls; the range is over methods.",
    )


def early_share(losses: Losses) -> float | None:
    """Return the share of the fall from the least to the largest k that is there at half of it; ``None`` if none."""
    means = {int(k): float(np.mean(row)) for k, row in losses.items()}
    first, last = min(means), max(means)
    half = min(means, key=lambda k: abs(k - last / 2))
    fall = means[first] - means[last]
    return (means[first] - means[half]) / fall if fall > 0 else None


def forecast(forecasts: Mapping[str, Mapping[str, Any]], losses: Mapping[str, Losses]) -> Claim:
    missed = {}
    for method, found in forecasts.items():
        means = [float(np.mean(row)) for row in losses[method].values()]
        if found["error"] is not None and max(means) > min(means):
            missed[method] = found["error"] / (max(means) - min(means))
    said = ", ".join(f"{m} {forecasts[m]['error']:.3g} nats ({share:.1%} of the range)" for m, share in missed.items())
    return Claim(
        "Scaling law: three values of k predict the others",
        f"no number; here an error of {MISSED:.0%} of the range over k at most",
        said or "only three values of k were measured",
        judged(extremes(missed.values()), high=MISSED),
        "Mean error over the other k; relative to the loss itself it would be small whatever the law says.",
    )


def shrinks(method: str, found: tuple[float, Interval] | None) -> Claim:
    return Claim(
        f"Scaling law: variability shrinks as more experts are included ({method})",
        "the variance over subsets falls, roughly as 1/k",
        "too few subsets" if found is None else f"slope of log variance on log k {found[0]:+.2f} {shown(found[1])}",
        judged(found and found[1], high=-SOME),
        "-1 is a fall as 1/k. Subsets of a finite pool share experts, which makes the spread of large k smaller still.",
    )


def extremes(values: Any) -> Interval | None:
    known = list(values)
    return (min(known), max(known)) if known else None


def text(
    study: Mapping[str, Any], losses: Mapping[str, Losses], slopes: Mapping[str, tuple[float, Interval] | None]
) -> str:
    """Return the tables."""
    rows: list[list[Any]] = []
    for name, fit in study["the-law"].items():
        cells = [f"{shown(one['value'])} {shown(one['interval'])}" for one in fit["variables"].values()]
        rows.append([name, *cells, fit["r2"], "; ".join(fit["notes"])])
    names = next((list(fit["variables"]) for fit in study["the-law"].values()), [])
    parts = ["Fits, 95 % over subsets.", table(("method, tasks", *names, "R²", "notes"), rows)]
    rows = [[m, *(found[key] for key in ("k", "error", "relative"))] for m, found in study["three-values-of-k"].items()]
    parts += ["Fitted to three values of k.", table(("method", "k", "mean error, nats", "relative"), rows)]
    rows = [
        [method, int(k), len(row), float(np.mean(row)), float(np.var(row, ddof=1)) if len(row) > 1 else None]
        for method, found in losses.items()
        for k, row in found.items()
    ]
    parts += ["Mean over all tasks.", table(("method", "k", "subsets", "loss", "variance over subsets"), rows)]
    said = [[method, *(found or (None, None))] for method, found in slopes.items()]
    return "\n\n".join([*parts, "Slope of log variance on log k.", table(("method", "slope", "95 %"), said)])


def picture(losses: Mapping[str, Losses], fits: Mapping[str, Any]) -> bytes:
    """Draw mean losses with the fitted law, and the variance over subsets."""
    figure = new_figure(10, 3.8)
    left, right = figure.subplots(1, 2)
    for (method, found), colour in zip(losses.items(), (BLUE, ORANGE, GREEN, INK, GREY), strict=False):
        ks = np.array([int(k) for k in found])
        left.plot(ks, [np.mean(row) for row in found.values()], "o", color=colour, label=method)
        values = {name: one["value"] for name, one in fits[f"{method} all"].get("variables", {}).items()}
        if {"L_inf", "A", "b"} <= values.keys():
            fine = np.linspace(ks.min(), ks.max(), 100)
            left.plot(fine, values["L_inf"] + values["A"] / (fine + values["b"]), color=colour)
        rows = usable(found)
        right.loglog([int(k) for k in rows], [np.var(row, ddof=1) for row in rows.values()], "o-", color=colour)
    left.set_xlabel("experts k")
    left.set_ylabel("loss, nats per token")
    right.set_xlabel("experts k")
    right.set_ylabel("variance over subsets")
    for axes in (left, right):
        clean(axes, "both")
    legend(left)
    title(figure, "The scaling law of merging")
    return png(figure)


if __name__ == "__main__":
    main()
