r"""Layers that a LoRA adapter changes: the merged displacement :math:`s\,BA` and its projection, without merging."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genbound.checkpoints.names import plain_name
from genbound.errors import GenboundError


@dataclass
class Adapted:
    """A layer of PEFT with its active adapters."""

    name: str
    module: Any

    @property
    def base(self) -> Tensor:
        """The weight below the adapter, of the layer's shape."""
        return self.module.get_base_layer().weight

    def check(self) -> None:
        """Refuse what a scaled adapter cannot keep in the ball."""
        module = self.module
        if getattr(module, "lora_variant", None):
            raise GenboundError(f"{self.name!r}: the constraint knows plain LoRA, not DoRA and other variants")
        if module.merged:
            raise GenboundError(f"{self.name!r}: its adapter is merged; unmerge it while training")
        if self.base.requires_grad:
            raise GenboundError(f"{self.name!r}: both the base weight and its adapter are trained; freeze one of them")

    def check_base(self, start: Tensor) -> None:
        """Refuse an adapter whose base weight is not ``start``, of its shape: the displacement counts from there."""
        if not torch.equal(self.base.to(start.dtype), start):
            raise GenboundError(f"{self.name!r}: the adapter's base weight is not that of init")

    def displacement(self) -> Tensor:
        """The merged displacement of the active adapters in float64, of the base weight's shape."""
        return sum(self.module.get_delta_weight(adapter).detach().double() for adapter in self._active())

    def squared_distance(self) -> Tensor:
        """Squared Frobenius norm of the merged displacement, shape ``[]``; with gradients, for a penalty."""
        return sum(self.module.get_delta_weight(adapter) for adapter in self._active()).square().sum()

    def _active(self) -> list[str]:
        return [name for name in self.module.active_adapters if name in self._factors()]

    def distance(self, norm: str) -> float:
        """Frobenius norm of the merged displacement, or its MARS norm: the largest l1 norm of a row."""
        v = self.displacement()
        if norm == "mars":
            return float(self._rows(v).abs().sum(1).max())
        return float(torch.linalg.vector_norm(v))

    def project(self, radius: float, norm: str) -> bool:
        """Scale B until the merged displacement is in the ball; whether it had to."""
        moved = False
        for attempt in range(8):  # the factors are rounded, so that the first scaling may miss by a rounding
            v = self.displacement()
            if norm == "mars":
                sizes = self._rows(v).abs().sum(1)
                if not bool((sizes > radius).any()):
                    return moved
                scale = torch.where(sizes > radius, radius / sizes, torch.ones_like(sizes))
            else:
                size = torch.linalg.vector_norm(v)
                if float(size) <= radius:
                    return moved
                scale = radius / size
            # From the second attempt on a few roundings further in; a bfloat16 factor moves in coarse steps.
            margin = attempt * 4 * torch.finfo(next(iter(self._factors().values())).dtype).eps
            self._scale(torch.where(scale < 1, scale * (1 - margin), scale))
            moved = True
        self._scale(torch.zeros_like(scale))
        return moved

    def _factors(self) -> dict[str, Tensor]:
        """The factor whose rows are the outputs, by adapter."""
        if self.module.lora_B:
            return {name: layer.weight for name, layer in self.module.lora_B.items()}
        return dict(self.module.lora_embedding_B.items())

    def _rows(self, v: Tensor) -> Tensor:
        if self.module.lora_embedding_B:
            raise GenboundError(f"{self.name!r}: the mars norm of an adapted embedding is not supported: use frobenius")
        if getattr(self.module, "fan_in_fan_out", False):
            v = v.T
        return v.reshape(len(v), -1)

    def _scale(self, scale: Tensor) -> None:
        for name in self.module.active_adapters:
            if name in (factors := self._factors()):
                factor = factors[name]
                shaped = scale.view(-1, *[1] * (factor.dim() - 1)) if scale.dim() else scale
                factor.copy_(factor.double() * shaped)


def adapted_layers(model: nn.Module) -> Iterator[Adapted]:
    """The layers with a LoRA adapter; recognised by what PEFT gives them, so that PEFT need not be importable."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer") and hasattr(module, "get_delta_weight"):
            yield Adapted(plain_name(f"{name}.weight"), module)
