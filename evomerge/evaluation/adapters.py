"""Wear an individual: add its low-rank delta to the base model's linear layers, without touching the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from evomerge.errors import ExpertError, did_you_mean

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class AdapterSlots:
    """A place for ``B [out, k]`` and ``A [k, in]`` at each target module: ``y = W x + B (A x)``.

    Changing the individual replaces two small tensors a module; the base stays as it is.
    """

    def __init__(self, model: nn.Module, modules: Iterable[str]) -> None:
        self._modules = tuple(modules)
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._device = next(model.parameters()).device
        self._dtype = next(model.parameters()).dtype
        known = dict(model.named_modules())
        for name in self._modules:
            if name not in known:
                kinds = {other for other in known if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]}
                raise ExpertError(
                    f"the base model has no module {name!r} that the experts adapt",
                    where=type(model).__name__,
                    fix=f"Use the base that the experts were trained on. {did_you_mean(name, kinds)[:300]}",
                )
            known[name].register_forward_hook(self._hook(name))

    def wear(self, factors: Factors) -> None:
        """Put an individual's factors into the slots; modules that it lacks stay plain."""
        for name in factors:
            if name not in self._modules:
                raise ExpertError(
                    f"no slot for the factors of module {name!r}",
                    where="Model(modules=...)",
                    fix="Name every module that individuals adapt when the model is made.",
                )
        self._factors = {
            name: (B.to(self._device, self._dtype), A.to(self._device, self._dtype)) for name, (B, A) in factors.items()
        }

    def _hook(self, name: str) -> torch.nn.modules.module._ForwardHook:  # type: ignore[name-defined]
        def add_delta(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if name not in self._factors:
                return output
            B, A = self._factors[name]
            return output + F.linear(F.linear(args[0], A), B)

        return add_delta
