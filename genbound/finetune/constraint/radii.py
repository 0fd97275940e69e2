"""Which radius belongs to which layer: by pattern, relative to the pretrained weights, or by stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from genbound.errors import GenboundError
from genbound.finetune.constraint.projections import as_rows

NORMS = ("frobenius", "mars")


def resolve_radii(names: Iterable[str], radius: float | Mapping[str, float]) -> dict[str, float]:
    """The radius of every layer.

    Args:
        names: the layers.
        radius: one for all, or ``pattern -> radius`` with ``*`` wildcards; the first pattern that fits counts, and a
            layer that none fits is free (radius infinity).

    Raises:
        GenboundError: a radius is negative or no number, or a pattern fits no layer.
    """
    names = list(names)
    table = radius if isinstance(radius, Mapping) else {"*": radius}
    for pattern, value in table.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
            raise GenboundError(f"radius {value!r} of {pattern!r} is no number >= 0 (inf leaves a layer free)")
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            raise GenboundError(f"radius pattern {pattern!r} fits no weight; the weights are {shown}")
    found = {name: next((float(r) for p, r in table.items() if fnmatchcase(name, p)), math.inf) for name in names}
    return found


def relative_radii(
    init: Mapping[str, Tensor], fraction: float, norm: str = "frobenius", model: nn.Module | None = None
) -> dict[str, float]:
    r"""Radii :math:`\mathrm{fraction}\cdot\|W_i^{(s)}\|`, so that one number suits layers of every size.

    A layer that starts from zero (a new head) has no scale of its own and stays free.

    Args:
        init: pretrained weights by name; those with two dimensions or more are layers.
        fraction: share of the norm, >= 0.
        norm: ``frobenius`` or ``mars``.
        model: that has the weights; says for ``mars`` which axis the outputs are. Without it they are the first one,
            which is not so of transposed convolutions and of GPT-2's ``Conv1D``.

    Returns:
        Radius by the layer's name, in the units of the weights.

    Raises:
        GenboundError: the norm is neither of them, or the fraction is negative or no number.
    """
    if norm not in NORMS:
        raise GenboundError(f"norm {norm!r} is unknown: use {' or '.join(NORMS)}")
    if not fraction >= 0:
        raise GenboundError(f"fraction {fraction!r} is no share >= 0 of a norm")
    found, owners = {}, {} if model is None else _owners(model)
    for name, weight in init.items():
        if weight.dim() >= 2:
            w = weight.detach().double()
            size = float(w.norm() if norm == "frobenius" else as_rows(w, owners.get(name))[0].abs().sum(1).max())
            found[name] = fraction * size if size > 0 else math.inf
    return found


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """Parameter -> the module that it belongs to."""
    return {
        f"{path}.{name}" if path else name: module
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }


def stage_radii(
    names: Iterable[str], radius: float, scale: float, stages: Sequence[Sequence[str]] | None = None
) -> dict[str, float]:
    r"""The schedule D, D, D·s, D·s² over four stages of depth, as the published experiments use it.

    With more stages the powers go on (D, D, D·s, D·s², D·s³, …): deeper layers may move further where s > 1.

    Args:
        names: the layers, in the order of depth.
        radius: D.
        scale: s.
        stages: patterns of each stage's layers, such as
            ``[["layer1.*"], ["layer2.*"], ["layer3.*"], ["layer4.*", "fc.*"]]``. By default four runs of the layers in
            their order, as equal in number as can be.

    Returns:
        Radius by name; layers of no stage are absent, so they stay free.
    """
    names = list(names)
    if stages is None:
        stage = {name: min(3, 4 * place // len(names)) for place, name in enumerate(names)}
    else:
        for patterns in stages:
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise GenboundError(f"stage pattern {pattern!r} fits no weight")
        fits = {
            name: [i for i, patterns in enumerate(stages) if any(fnmatchcase(name, p) for p in patterns)]
            for name in names
        }
        stage = {name: found[0] for name, found in fits.items() if found}
    return {name: radius * scale ** max(0, i - 1) for name, i in stage.items()}
