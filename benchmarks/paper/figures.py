"""Figures 2, 4, 5, 6 and 8: what ``evomerge analyze`` found of a pool, beside what the paper says of its own.

    .venv/bin/python -m benchmarks.paper.figures --analysis FOLDER

Reads ``study.json`` there, and ``saturation.json`` among the results for the number of experts where merges were best.
Nothing is measured here. What the analysis has no section of (predictions need a base and texts) is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.claims import RESULTS, Claim, judged, shown, table, write_picture, write_results
from benchmarks.paper.law import extremes, read
from evomerge.report.drawing import BLUE, GREY, ORANGE, clean, legend, new_figure, png, title

RIGHT = 80.0
"""Degrees from which an angle counts as close to 90."""
NORMAL = 0.1
"""Largest size of the excess kurtosis of what counts as Gaussian."""
OTHERS = ("Gaussian", "uniform merge")  # rows of the analysis that are no experts

Study = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--analysis", type=Path, required=True, help="folder that `evomerge analyze` wrote")
    parser.add_argument("--setting", choices=("fast", "small"), default="small", help="what the analysis was of")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    study = read(given.analysis, "study.json")
    found = claims(study, peaks(given.results / "saturation.json"))
    pool = study["the-pool"]
    setting = {"setting": given.setting, "base": Path(str(pool["base"])).name, "experts": pool["experts"], "seeds": []}
    write_picture(given.results, "figures", picture(study))
    sections = ("principal-components", "principal-angles", "singular-values", "predictions-against-the-base")
    data = {section: study[section] for section in sections if section in study}
    write_results(given.results, "figures", setting, data, found, text(study))


def peaks(path: Path) -> dict[str, int]:
    """Return the number of experts at which each method was best; empty if saturation.py has no results."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8")).get("saturation", {})
    return {method: int(one["best"]) for method, one in found.items()}


def claims(study: Study, best: Mapping[str, int]) -> list[Claim]:
    """Return a verdict for each figure that the analysis can speak of."""
    found = []
    if "centred" in study.get("principal-components", {}):
        found.append(components(study["principal-components"], best))
    if "column spaces" in study.get("principal-angles", {}):
        found += [angles(study["principal-angles"], side) for side in ("column spaces", "row spaces")]
    if "singular-values" in study:
        found += [small_values(study["singular-values"]), few_directions(study["singular-values"])]
    if "weights" in study:
        found.append(gaussian(study["weights"]["delta"]))
    if "predictions-against-the-base" in study:
        found += tokens(study["predictions-against-the-base"])
    return found


def components(found: Study, best: Mapping[str, int]) -> Claim:
    needed, total = found["centred"]["needed"], len(found["experts"])
    said = ", ".join(f"{method} {size}" for method, size in best.items())
    verdict = judged(extremes(best.values()), needed - 1, needed + 1)
    return Claim(
        "Figure 2: the components that carry 95 % of the variance are as many as experts where performance peaks",
        "about 6 of 10 for GENOME (in words, section 4.2)",
        f"{needed} components of {total} experts; best with {said or 'not measured'}",
        verdict,
        "Within one expert counts. Where experts are nearly orthogonal, the number of components is that of the "
        "experts whatever merging does. saturation.py says how sure its peaks are.",
    )


def angles(found: Study, side: str) -> Claim:
    part = found[side]
    pairs = np.array(part["pairs"], dtype=float)
    values = pairs[np.triu_indices(len(pairs), 1)]
    mean, chance = (float(np.mean(list(part[field].values()))) for field in ("mean", "chance_smallest"))
    return Claim(
        f"Figure 4: principal angles between domains' subspaces are close to 90 degrees ({side})",
        f"close to 90°, no number; here {RIGHT:g}° at least between any two experts",
        f"smallest angle {values.min():.1f}° to {values.max():.1f}° over pairs (random subspaces: {chance:.1f}°); "
        f"mean of all angles {mean:.1f}°",
        judged((float(values.min()), float(values.max())), low=RIGHT),
        "Means over modules. Random subspaces of these ranks are the yardstick, not 90°: see the analysis.",
    )


def small_values(found: Study) -> Claim:
    share, rank = 100 * found["of_all"][-1], 100 * found["nonzero"] / found["total"]
    return Claim(
        "Section 4.4: most singular values of LoRA weights are below e^-9",
        "most; 0.195 % lie between e^-2 and e^-1",
        f"{share:.2f} % below e^-9; {100 * found['of_all'][found['bins'].index('e^-2 to e^-1')]:.3f} % between e^-2 "
        f"and e^-1; {rank:.3f} % are not zero at all",
        judged((share, share), low=50.0),
        "It is the rank's share, not what was learned: 8 / 4096 = 0.1953 % are not zero in an update of rank 8.",
    )


def few_directions(found: Study) -> Claim:
    share = 100 * found["of_nonzero"][-1]
    ranks = found["effective_rank"]
    return Claim(
        "Section 4.4: LoRA concentrates its changes in a few directions (singular values that the rank allows)",
        "a heavy-tailed distribution, most below e^-9",
        f"{share:.2f} % of the values that are not zero are below e^-9; effective rank "
        f"{min(ranks.values()):.1f} to {max(ranks.values()):.1f} over kinds of modules",
        judged((share, share), low=50.0),
        "Only of what the rank lets differ from zero can training decide.",
    )


def gaussian(delta: Study) -> Claim:
    rows = {name: one["kurtosis"] for name, one in delta.items() if name not in OTHERS and one["kurtosis"]}
    ends = [row["value"] + side * 1.96 * row["error"] for row in rows.values() for side in (-1, 1)]
    inner = [one["median_of_modules"]["kurtosis"] for name, one in delta.items() if one["median_of_modules"]]
    inside = [value for value in inner if value is not None]
    said = f"; inside the median module {min(inside):.2f} to {max(inside):.2f}" if inside else ""
    return Claim(
        "Figures 5 and 8, Theorem 1: weights of experts are Gaussian",
        f"by eye; here an excess kurtosis within ±{NORMAL} for all experts",
        f"excess kurtosis of delta-W {min(ends):.2f} to {max(ends):.2f} over {len(rows)} experts{said}",
        judged(extremes(ends), -NORMAL, NORMAL),
        "95 % intervals; modules have different scales, so that together they are a mixture.",
    )


def tokens(found: Study) -> list[Claim]:
    """Return the verdicts on Figure 6: on perplexities, and on tokens, which numbers cannot judge."""
    names = found["experts"]
    ratios = {
        name: row[1 + names.index(name)] / row[0]
        for task, row in found["perplexity"].items()
        for name in names
        if name == task or name.partition("_")[2] == task
    }
    said = ", ".join(f"{name} {value:.2f}" for name, value in ratios.items())
    tops = {name: " ".join(token for token, *_ in top[:5]) for name, top in found["top"].items()}
    return [
        Claim(
            "Figure 6, right: experts have a lower perplexity than the base in their domain",
            "generally lower, 40 questions a domain, no number",
            f"perplexity over the base's, own domain: {said or 'no expert has a task of its own'}",
            judged(extremes(ratios.values()), high=1.0),
            "Of right answers or held-out texts, not of generated answers.",
        ),
        Claim(
            "Figure 6, left: tokens with the largest KL divergence are mostly domain-independent",
            "mostly; its top ten",
            "; ".join(f"{name}: {top}" for name, top in tops.items()),
            judged(None),
            "Whether a token belongs to a domain is for a reader to say; the tokens are listed.",
        ),
    ]


def text(study: Study) -> str:
    """Return the tables."""
    parts: list[str] = []
    rows: list[Sequence[Any]]
    for name, part in study.get("principal-components", {}).items():
        if isinstance(part, Mapping):
            sums = np.cumsum(part["shares"])
            lead = f"Cumulative variance, {name}: {part['needed']} components for 95 %."
            parts += [lead, table([*map(str, range(1, len(sums) + 1))], [[float(x) for x in sums]])]
    if "singular-values" in study:
        found = study["singular-values"]
        rows = list(zip(found["bins"], found["of_all"], found["of_nonzero"], strict=True))
        parts += ["Singular values, shares.", table(("bin", "of all", "of those not zero"), rows)]
    for side in ("column spaces", "row spaces"):
        part = study.get("principal-angles", {}).get(side)
        if part:
            rows = [[k, v, part["chance_smallest"][k], part["mean"][k]] for k, v in part["smallest"].items()]
            parts += [f"Principal angles, degrees, {side}.", table(("modules", "smallest", "by chance", "mean"), rows)]
    if "weights" in study:
        rows = [[name, shown((one["kurtosis"] or {}).get("value"))] for name, one in study["weights"]["delta"].items()]
        parts += ["Excess kurtosis of the entries of delta-W.", table(("expert", "kurtosis"), rows)]
    return "\n\n".join(parts)


def picture(study: Study) -> bytes:
    """Draw cumulative variance, and the singular values in the paper's bins."""
    figure = new_figure(10, 3.8)
    left, right = figure.subplots(1, 2)
    for (name, part), colour in zip(_kinds(study), (BLUE, ORANGE), strict=False):
        sums = 100 * np.cumsum(part["shares"])
        left.plot(range(1, len(sums) + 1), sums, "o-", color=colour, label=name)
    left.axhline(95, color=GREY, linestyle=":")
    left.set_xlabel("components")
    left.set_ylabel("cumulative variance, %")
    found = study.get("singular-values", {"bins": [], "of_all": [], "of_nonzero": []})
    places = np.arange(len(found["bins"]))
    right.bar(places - 0.2, 100 * np.array(found["of_all"]), 0.4, color=BLUE, label="of all")
    right.bar(places + 0.2, 100 * np.array(found["of_nonzero"]), 0.4, color=ORANGE, label="of those not zero")
    right.set_xticks(places, found["bins"], rotation=60, ha="right", fontsize=8)
    right.set_ylabel("singular values, %")
    for axes in (left, right):
        clean(axes, "y")
        legend(axes)
    title(figure, "Figures 2 and 5 on our pool")
    return png(figure)


def _kinds(study: Study) -> Sequence[tuple[str, Any]]:
    return [(k, v) for k, v in study.get("principal-components", {}).items() if isinstance(v, Mapping)]


if __name__ == "__main__":
    main()
