"""What a merge is asked to do, resolved and checked: experts found, of one kind, with room in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from evomerge.errors import ExpertError, RecipeError, RunError
from evomerge.experts.adapter import CONFIG as ADAPTER_CONFIG
from evomerge.experts.adapter import WEIGHTS
from evomerge.experts.base import resolve_base
from evomerge.experts.full import FullModel, model_folder, read_full
from evomerge.experts.pool import Pool, load_pool
from evomerge.recipe.merge import MergeRecipe

# Methods that also make sense on weights themselves, without a base to subtract.
ON_WEIGHTS = ("fisher", "karcher", "linear", "nuslerp", "regmean", "slerp")
# Memory that reading a pool of adapters and encoding it takes, as a multiple of their float32 size: factors,
# bases in float64 of one module, genomes, and the merge's own result.
_ADAPTER_COPIES = 4


@dataclass(frozen=True, eq=False)
class AdapterRequest:
    """A merge of adapters."""

    recipe: MergeRecipe
    pool: Pool
    space: Literal["subspace", "factors", "dense"]
    memory: int


@dataclass(frozen=True, eq=False)
class ModelRequest:
    """A merge of full models; without ``base`` their weights are merged, with it their task vectors."""

    recipe: MergeRecipe
    models: tuple[FullModel, ...]
    base: FullModel | None


Request = AdapterRequest | ModelRequest


def resolve_request(recipe: MergeRecipe) -> Request:
    """Find the experts and check that they can be merged as asked.

    Raises:
        ExpertError, Problems: an expert cannot be had or used, or they do not fit together.
        RecipeError: an option does not fit the kind of experts.
        RunError: the merge would need more memory than there is.
    """
    folders = [model_folder(Path(spec).expanduser()) for spec in recipe.experts]
    kinds = {is_full_model(folder) for folder in folders}
    if len(kinds) > 1:
        cause = f"Adapters and full models cannot be merged with each other: {_kinds(recipe.experts, folders)}"
        fix = "First make full models of the adapters: `evomerge merge ADAPTER --into-base -o FOLDER`."
        raise ExpertError(cause, where="experts", fix=fix)
    return _models(recipe, folders) if kinds.pop() else _adapters(recipe, folders)


def is_full_model(folder: Path | str) -> bool:
    """Return whether a folder holds a full model; what holds neither kind counts as an adapter, and is told so."""
    return (Path(folder) / "config.json").is_file() and not (Path(folder) / ADAPTER_CONFIG).is_file()


def _kinds(specs: Sequence[str], folders: Sequence[Path]) -> str:
    return ", ".join(
        f"{spec} is {'a full model' if is_full_model(folder) else 'an adapter'}"
        for spec, folder in zip(specs, folders, strict=True)
    )


def _adapters(recipe: MergeRecipe, folders: Sequence[Path]) -> AdapterRequest:
    if recipe.dtype and not recipe.into_base:
        fix = "Leave it out, or add --into-base."
        raise RecipeError("`dtype` is for full models; adapters are written in float32", where="dtype", fix=fix)
    sizes = [(folder / WEIGHTS).stat().st_size for folder in folders if (folder / WEIGHTS).is_file()]
    check_memory(_ADAPTER_COPIES * 2 * sum(sizes))  # stored in half precision they double
    pool = load_pool(folders, str(resolve_base(recipe.base)) if recipe.base else None)
    space = "subspace" if recipe.space == "auto" else recipe.space
    memory = _ADAPTER_COPIES * 4 * sum(f.A.numel() + f.B.numel() for a in pool.adapters for f in a.factors.values())
    if space == "dense":
        memory += 4 * (2 * len(folders) + 4) * max(outs * ins for outs, ins in pool.modules.values())
    check_memory(memory)
    return AdapterRequest(recipe, pool, space, memory)


def _models(recipe: MergeRecipe, folders: Sequence[Path]) -> ModelRequest:
    if recipe.space not in ("auto", "dense"):
        cause = f"Space {recipe.space!r} is for adapters; these are full models"
        raise RecipeError(cause, where="space", fix="Use `dense`, or leave it out.")
    for name, value in (("rank", recipe.rank), ("into_base", recipe.into_base)):
        if value:
            raise RecipeError(f"`{name}` is for adapters; these are full models", where=name, fix="Leave it out.")
    if recipe.base is None and (recipe.method.name not in ON_WEIGHTS or recipe.post_merge):
        what = f"{recipe.method.name} works" if recipe.method.name not in ON_WEIGHTS else "hooks work"
        fix = f"Name the base they were fine-tuned from: --base; or use one of {', '.join(ON_WEIGHTS)}."
        raise RecipeError(f"{what} on task vectors, so the base is needed", where="base", fix=fix)
    base = read_full(model_folder(resolve_base(recipe.base)), "base") if recipe.base else None
    return ModelRequest(recipe, tuple(read_full(folder) for folder in folders), base)


def available_memory() -> int:
    """Return the bytes of memory that this process may still take: the machine's, or its control group's."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no control groups here, or no limit ("max")
        pass
    return free


def check_memory(needed: int) -> None:
    """Raise ``RunError`` if a merge needs more memory than there is."""
    free = available_memory()
    if needed > free:
        raise RunError(
            f"The merge needs about {needed / 2**30:.1f} GiB of memory; {max(free, 0) / 2**30:.1f} GiB are free",
            where="memory",
            fix="Merge fewer experts at a time, close other programs, or use a larger machine.",
        )
