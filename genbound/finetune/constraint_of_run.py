"""From a run's settings to its distance constraint."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from genbound.errors import GenboundError
from genbound.finetune.constraint.distance_constraint import DistanceConstraint
from genbound.finetune.constraint.radii import relative_radii, stage_radii
from genbound.finetune.settings import Settings, parse_radius


def constraint_of(model: nn.Module, head: tuple[str, ...], settings: Settings) -> DistanceConstraint:
    """The constraint that the settings ask for, around the model's present weights.

    Args:
        model: the network before it is trained (and before it gets adapters).
        head: its head: constrained around zero with ``head_radius``, where that is given, and by ``radius`` otherwise. A head that
            starts at random is no pretrained weight, so a *relative* radius leaves it free.
        settings: of the run. Without any radius all balls are infinite, and the constraint only measures.
    """
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    layers = [name for name, p in model.named_parameters() if p.dim() >= 2]
    radii = _radii({name: state[name] for name in layers}, head, settings)
    if settings.head_radius is not None:
        for name in layers:
            if name in head:
                state[name] = torch.zeros_like(state[name])
                radii[name] = settings.head_radius
    return DistanceConstraint(state, radii, settings.norm, settings.norm_layers)


def _radii(weights: dict[str, Tensor], head: tuple[str, ...], settings: Settings) -> dict[str, float]:
    radii = dict.fromkeys(weights, float("inf"))
    if settings.radius is None:
        return radii
    parts = parse_radius(settings.radius)
    norms = relative_radii(weights, 1.0, settings.norm)
    for pattern, _, _ in parts:
        if not any(fnmatchcase(name, pattern) for name in weights):
            raise GenboundError(
                f"--radius pattern {pattern!r} fits no weight; the weights are {', '.join(list(weights)[:4])}, …"
            )
    for name in weights:
        pattern, number, relative = next(
            (part for part in parts if fnmatchcase(name, part[0])), ("", float("inf"), False)
        )
        if relative and name in head and pattern == "*":
            continue
        radii[name] = number * norms[name] if relative else number
    if settings.radius_scale != 1.0:
        factors = stage_radii([name for name in weights if name not in head], 1.0, settings.radius_scale)
        radii = {name: radius * factors.get(name, 1.0) for name, radius in radii.items()}
    return radii
