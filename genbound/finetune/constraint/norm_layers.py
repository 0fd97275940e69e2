r"""The constraint of normalisation layers, on the scale that they apply to a feature."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genbound.checkpoints.names import plain_name
from genbound.errors import GenboundError
from genbound.finetune.constraint.projections import round_towards

EPSILON = 1e-6  # of the definition; not the layer's own eps


def is_norm_layer(module: nn.Module) -> bool:
    """It scales features by a vector ``weight``: batch, layer, group, instance or root-mean-square normalisation."""
    known = isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)
    named = "norm" in type(module).__name__.lower()  # every language model brings its own
    weight = getattr(module, "weight", None)
    return (known or named) and isinstance(weight, nn.Parameter) and weight.dim() == 1


def scale(weight: Tensor, variance: Tensor | None) -> Tensor:
    r""":math:`\gamma/\sqrt{\mathrm{var}+10^{-6}}`, ``[C]`` in float64; :math:`\gamma` where no variance is kept.

    Args:
        weight: gamma, ``[C]``.
        variance: running variance, ``[C]``.
    """
    return weight.double() if variance is None else weight.double() / (variance.double() + EPSILON).sqrt()


@torch.no_grad()
def project_norm_layers(model: nn.Module, init: Mapping[str, Tensor], radius: float) -> int:
    r"""Clamp every scale to :math:`[g_0 - D, g_0 + D]` and set :math:`\gamma` accordingly; the variance stays.

    Returns:
        How many layers were moved.

    Raises:
        GenboundError: ``init`` lacks a layer's weight or variance.
    """
    moved = 0
    for path, module in model.named_modules():
        if not is_norm_layer(module) or ".original_module" in path:
            continue
        name = plain_name(f"{path}.weight")
        variance, start_variance = getattr(module, "running_var", None), None
        if name not in init:
            raise GenboundError(f"init has no {name!r}, whose normalisation layer is to be constrained")
        if variance is not None:
            key = plain_name(f"{path}.running_var")
            if key not in init:
                raise GenboundError(f"init has no {key!r}: give the pretrained buffers with the weights")
            start_variance = init[key].to(variance.device)
        start = scale(init[name].to(module.weight.device), start_variance)
        now = scale(module.weight, variance)
        bounded = now.clamp(start - radius, start + radius)
        if torch.equal(bounded, now):
            continue
        root = 1.0 if variance is None else (variance.double() + EPSILON).sqrt()
        centre = start * root
        inside = round_towards(centre, (bounded - start) * root * (1 - 1e-14), module.weight.dtype)
        module.weight.copy_(torch.where(bounded == now, module.weight, inside))
        moved += 1
    return moved
