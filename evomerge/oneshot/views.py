"""EMR's output on disk: a unified adapter that PEFT loads, and beside it one small mask file for each task.

out/adapter_config.json, adapter_model.safetensors      the unified adapter
out/emr/unified.safetensors                             its genome, and the genome space
out/emr/<task>.safetensors                              one bit an entry, and the rescaler
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.errors import ExpertError, did_you_mean
from evomerge.files import write_bytes
from evomerge.spaces import FactorSpace, GenomeSpace, Subspace
from evomerge.variation.merge.emr import Unified, pack_mask, unpack_mask, view

FOLDER = "emr"
_UNIFIED = "unified"


def write_views(folder: Path, space: GenomeSpace, unified: Unified, tasks: tuple[str, ...]) -> None:
    """Write ``emr/`` below a folder: the unified genome with its space, and each task's mask and rescaler."""
    tensors, about = _pack_space(space)
    tensors["genome"] = unified.vector
    _write(folder / FOLDER / f"{_UNIFIED}.safetensors", tensors, about)
    for row, task in enumerate(tasks):
        packed = torch.frombuffer(bytearray(pack_mask(unified.masks[row])), dtype=torch.uint8)
        scale = {"scale": float(unified.scales[row]), "space": space.digest}
        _write(folder / FOLDER / f"{task}.safetensors", {"mask": packed}, scale)


def tasks_of(folder: Path) -> list[str]:
    """Return the tasks that a folder has views of; none if it is no EMR merge."""
    return sorted(path.stem for path in (folder / FOLDER).glob("*.safetensors") if path.stem != _UNIFIED)


def read_view(folder: Path, task: str) -> tuple[GenomeSpace, Tensor]:
    """Return a task's view of a unified adapter: its genome ``[d]``, and the space that it lives in.

    Raises:
        ExpertError: the folder has no such view, or a file of it is damaged.
    """
    known = tasks_of(folder)
    if task not in known:
        what = f"no view {task!r}" if known else "no views: it was not written by the method `emr`"
        raise ExpertError(f"{folder} has {what}", where=str(folder / FOLDER), fix=did_you_mean(task, known))
    tensors, about = _read(folder / FOLDER / f"{_UNIFIED}.safetensors")
    space = _unpack_space(tensors, about)
    mask, scale = _read(folder / FOLDER / f"{task}.safetensors")
    if scale["space"] != space.digest:
        cause = f"The mask of {task!r} belongs to another unified adapter"
        raise ExpertError(cause, where=str(folder / FOLDER), fix="Merge again; do not mix files of two merges.")
    bits = unpack_mask(mask["mask"].numpy().tobytes(), space.dimension)
    return space, view(tensors["genome"], bits, scale["scale"])


def _pack_space(space: GenomeSpace) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(space, Subspace):
        tensors = {f"U/{module}": U for module, (U, _) in space.bases.items()}
        tensors |= {f"V/{module}": V for module, (_, V) in space.bases.items()}
        return tensors, {"space": space.name, "modules": list(space.bases)}
    assert isinstance(space, FactorSpace), "spaces of adapters are these two"
    return {}, {"space": space.name, "shapes": {module: list(shape) for module, shape in space.shapes.items()}}


def _unpack_space(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> GenomeSpace:
    if about["space"] == "subspace":
        return Subspace({module: (tensors[f"U/{module}"], tensors[f"V/{module}"]) for module in about["modules"]})
    return FactorSpace({module: (outs, rank, ins) for module, (outs, rank, ins) in about["shapes"].items()})


def _write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(contiguous, metadata={"evomerge": json.dumps(about)}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["evomerge"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        cause = f"{path.name} is missing, truncated or corrupt ({error})"
        raise ExpertError(cause, where=str(path), fix="Merge again with `--method emr`.") from None
