"""Fine-tunes of the pico base for tests of full models: its own files, with noise on every tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from evomerge.experts.full import CONFIG, WEIGHTS, read_full
from evomerge.keys import Key


def tune(base: Path, folder: Path, *, size: float = 0.05, dtype: torch.dtype = torch.float32, **config: object) -> Path:
    """Save the base with Gaussian noise that depends on the folder's name; ``size=0`` copies it."""
    shutil.copytree(base, folder)
    random = Key(0).at(folder.name).torch()
    tensors = {
        name: (tensor + size * torch.randn(tensor.shape, generator=random)).to(dtype)
        for name, tensor in sorted(state(base).items())
    }
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = json.loads((folder / CONFIG).read_text()) | {"dtype": str(dtype).removeprefix("torch.")} | config
    (folder / CONFIG).write_text(json.dumps(settings))
    return folder


def sharded(model: Path, folder: Path, most: str = "30KB") -> Path:
    """Let transformers save a model in shards."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder, max_shard_size=most)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def state(folder: Path) -> dict[str, Tensor]:
    """Return every stored tensor by name."""
    model = read_full(folder)
    return {name: model.read(name) for name in model.tensors}


def deltas(folders: list[Path], base: Path) -> dict[str, Tensor]:
    """Return the task vectors of each tensor, ``[n, m]``."""
    origin, experts = state(base), [state(folder) for folder in folders]
    return {name: torch.stack([(e[name].float() - origin[name].float()).flatten() for e in experts]) for name in origin}
