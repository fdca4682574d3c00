"""Do a merge and write it: adapters to an adapter, adapters into their base, full models to a full model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from evomerge.errors import RunError
from evomerge.experts.base import hub_name, resolve_base
from evomerge.experts.full import model_folder, read_full
from evomerge.experts.into_base import write_merged
from evomerge.experts.save import save_adapter
from evomerge.files import new_folder
from evomerge.oneshot.adapters import MergedAdapter, encode_all, exported, merge
from evomerge.oneshot.models import merge_models
from evomerge.oneshot.request import AdapterRequest, ModelRequest, Request
from evomerge.oneshot.soup import brew
from evomerge.oneshot.views import write_views
from evomerge.recipe.merge import MergeRecipe
from evomerge.report.merge_card import MergeFacts, merge_card
from evomerge.spaces import build_space
from evomerge.variation.merge.emr import emr


class Follow(Protocol):
    """What is told about a merge while it runs."""

    def stage(self, text: str) -> None:
        """What is being done now."""
        ...

    def bytes(self, done: int, total: int) -> None:
        """How much of a full model has been written."""
        ...


@dataclass(frozen=True)
class Done:
    """What came of a merge.

    Attributes:
        output: the folder that was written.
        lines: the facts about it, in words.
        seconds: how long it took.
    """

    output: Path
    lines: tuple[str, ...]
    seconds: float


def run_merge(request: Request, output: Path, follow: Follow) -> Done:
    """Merge, and write ``output``, which must not exist; after an interruption it does not.

    Raises:
        EvomergeError: whatever is wrong with experts, options, memory or disk.
    """
    check_output(output)
    start = time.perf_counter()
    facts = _facts(request.recipe, request)
    if isinstance(request, ModelRequest):
        follow.stage(f"merging {len(request.models)} full models")
        merge_models(request, output, {"README.md": merge_card(facts)}, follow.bytes)
        lines: tuple[str, ...] = (f"full model, {facts.method}",)
    else:
        lines = _adapters(request, facts, output, follow)
    return Done(output, lines, time.perf_counter() - start)


def check_output(output: Path) -> None:
    """Raise ``RunError`` if there is something where the merge is to be written."""
    if output.exists():
        raise RunError(f"{output} exists already", where=str(output), fix="Choose another folder, or remove it.")


def _adapters(request: AdapterRequest, facts: MergeFacts, output: Path, follow: Follow) -> tuple[str, ...]:
    method = request.recipe.method.name
    follow.stage(f"merging {len(request.pool.adapters)} adapters in {request.space}")
    if method == "emr":
        return _emr(request, facts, output)
    if method == "greedy_soup":
        merged, order = brew(request, follow.stage)
        facts = replace(facts, numbers=(order,))
    else:
        merged, order = merge(request), ""
    facts, lines = _told(facts, merged, request)
    if request.recipe.into_base:
        base = read_full(model_folder(resolve_base(request.recipe.base or request.pool.base)), "base")
        follow.stage("adding it to the base")
        card = merge_card(replace(facts, rank=None, kind="full model"))
        factors = merged.exported.factors
        write_merged(output, base, factors, extra={"README.md": card}, progress=follow.bytes)
    else:
        _save(request, facts, merged, output)
    return (order, *lines) if order else lines


def _save(request: AdapterRequest, facts: MergeFacts, merged: MergedAdapter, output: Path) -> None:
    rank = request.recipe.rank or merged.exported.rank
    save_adapter(output, merged.exported.factors, base=request.pool.base, rank=rank, readme=merge_card(facts))


def _emr(request: AdapterRequest, facts: MergeFacts, output: Path) -> tuple[str, ...]:
    """Write the unified adapter and the masks as one folder: all of it, or none."""
    space = build_space(request.space, request.pool)
    unified = emr(encode_all(space, request.pool))
    merged = exported(space, unified.vector, request)
    facts, lines = _told(replace(facts, views=request.pool.names), merged, request)
    with new_folder(output) as staged:
        _save(request, facts, merged, staged)
        write_views(staged, space, unified, request.pool.names)
    return (*lines, f"views of {', '.join(request.pool.names)}: `evomerge score {output} --view TASK`")


def _told(facts: MergeFacts, merged: MergedAdapter, request: AdapterRequest) -> tuple[MergeFacts, tuple[str, ...]]:
    """Return the facts with the numbers of the result, and the lines that the command prints."""
    mean = sum(merged.parents) / len(merged.parents)
    rank = request.recipe.rank or merged.exported.rank
    norm = f"norm of delta-W {merged.norm:.4g}, {merged.norm / mean if mean else 0:.2f} times the experts' mean"
    loss = f"rank {rank}; truncation loses {merged.exported.residual:.2e} of that norm"
    numbers = (*facts.numbers, f"{norm[0].upper()}{norm[1:]}.")
    return replace(facts, rank=rank, residual=merged.exported.residual, numbers=numbers), (norm, loss)


def _facts(recipe: MergeRecipe, request: Request) -> MergeFacts:
    adapters = isinstance(request, AdapterRequest)
    base = recipe.base or (request.pool.base if isinstance(request, AdapterRequest) else None)
    n = len(recipe.experts)
    return MergeFacts(
        title=f"{recipe.method.name} of {', '.join(Path(spec).name for spec in recipe.experts)}",
        kind="adapter" if adapters else "full model",
        base=base,
        base_model=hub_name(base) if base else None,
        method=recipe.method.text,
        experts=list(zip(recipe.experts, recipe.weights or [1 / n] * n, strict=True)),
        hooks=[hook.text for hook in recipe.post_merge],
        space=request.space if isinstance(request, AdapterRequest) else "dense",
        recipe_text=recipe_yaml(recipe),
    )


def recipe_yaml(recipe: MergeRecipe) -> str:
    """Return the YAML that asks for this merge again."""
    data: Mapping[str, Any] = recipe.model_dump(mode="json", exclude_defaults=True)
    return str(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True))
