r"""Keep every layer within a ball around its pretrained weights, by projection after each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from genbound.checkpoints.names import is_adapter, plain_name
from genbound.errors import GenboundError
from genbound.finetune.constraint.low_rank import Adapted, adapted_layers
from genbound.finetune.constraint.norm_layers import is_norm_layer, project_norm_layers
from genbound.finetune.constraint.projections import as_rows, frobenius_ball, mars_ball, round_towards
from genbound.finetune.constraint.radii import relative_radii, resolve_radii, stage_radii
from genbound.finetune.settings import Settings, parse_radius

PROJECTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {"frobenius": frobenius_ball, "mars": mars_ball}


class DistanceConstraint:
    r"""The constraint :math:`\|W_i - W_i^{(s)}\| \le \alpha_i` on every weight with two dimensions or more.

    Call :meth:`project` after each optimizer step, or :meth:`attach` it to the optimizer once. A layer inside its ball
    is not touched. One outside moves to the nearest point of the ball, rounded towards the pretrained weights where the
    number format cannot hold that point, so that the stored weights satisfy the constraint in every precision.

    * ``frobenius``: the displacement is scaled down.
    * ``mars``: maximum absolute row sum, the norm of Gouk et al.; every row (output unit or filter) is
      projected onto the l1 ball.

    Where a LoRA adapter is trained the constraint holds for the merged displacement :math:`s\,BA`: B is scaled, as a
    whole (``frobenius``, again the nearest point) or row by row (``mars``: the l1 projection would raise the rank, so
    the row is shortened instead).

    Args:
        init: pretrained weights by name, as in ``named_parameters()``; copied. Names of wrappers (``module.``,
            ``_orig_mod.``, PEFT's) are seen through. Give zeros for a head that is to stay near zero.
        radius: :math:`\alpha` for all layers, or ``pattern -> radius``, see
            :func:`~genbound.finetune.constraint.radii.resolve_radii`; ``inf`` leaves a layer free. A tied weight is
            kept within the least radius of its names.
        norm: ``frobenius`` or ``mars``.
        norm_layers: D of :math:`|\gamma/\sqrt{\mathrm{var}+10^{-6}} - \gamma_0/\sqrt{\mathrm{var}_0+10^{-6}}| \le D`,
            elementwise for every normalisation layer; needs its weight, and running variance if it keeps one, in
            ``init``. ``None`` leaves them free.

    Raises:
        GenboundError: a radius, pattern or norm is wrong; on projection, model and ``init`` do not belong together.

    **Cost**: one pass over the weights a step; ``mars`` sorts the rows that are outside.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> init = {"weight": torch.zeros(2, 2)}
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> DistanceConstraint(init, 1.0).project(model)
        1
        >>> [round(w, 3) for w in model.weight.flatten().tolist()]
        [0.6, 0.0, 0.0, 0.8]

    References:
        Gouk, Hospedales & Pontil, "Distance-Based Regularisation of Deep Networks for Fine-Tuning", ICLR 2021.
        Ju, Li & Zhang, "Robust Fine-Tuning of Deep Neural Networks with Hessian-based Generalization Guarantees",
            ICML 2022.
    """

    def __init__(
        self,
        init: Mapping[str, Tensor] | nn.Module,
        radius: float | Mapping[str, float],
        norm: str = "frobenius",
        norm_layers: float | None = None,
    ):
        if norm not in PROJECTIONS:
            raise GenboundError(f"norm {norm!r} is unknown: use {' or '.join(PROJECTIONS)}")
        if norm_layers is not None and not norm_layers >= 0:
            raise GenboundError(f"norm_layers {norm_layers!r} is no distance >= 0")
        if isinstance(init, nn.Module):
            init = {**dict(init.named_parameters()), **dict(init.named_buffers())}
        self.init = {plain_name(name): value.detach().clone() for name, value in init.items()}
        layers = [n for n, w in self.init.items() if w.dim() >= 2 and w.is_floating_point()]
        if not layers:
            raise GenboundError("init has no weight with two dimensions or more: there is nothing to constrain")
        self.radii = resolve_radii(layers, radius)
        self.norm, self.norm_layers = norm, norm_layers
        self._bases: dict[str, Tensor] = {}  # the adapters' base weights that were compared with init

    @torch.no_grad()
    def project(self, model: nn.Module) -> int:
        """Move every layer that is outside its ball back into it.

        Returns:
            How many layers were moved.
        """
        moved = 0
        for name, parameter, module in self._dense(model):
            radius = self.radii[name]
            start = self._start(name, parameter)
            new = project_weight(parameter, start, radius, self.norm, module)
            if new is not None:
                parameter.copy_(new)
                moved += 1
        for layer in self._adapted(model):
            moved += layer.project(self.radii[layer.name], self.norm)
        if self.norm_layers is not None:
            moved += project_norm_layers(model, self.init, self.norm_layers)
        return moved

    def distances(self, model: nn.Module) -> dict[str, float]:
        r"""The norm of each layer's displacement, in the constraint's own norm."""
        found = {
            name: distance(parameter, self._start(name, parameter), self.norm, module)
            for name, parameter, module in self._dense(model, finite_only=False)
        }
        return found | {layer.name: layer.distance(self.norm) for layer in self._adapted(model, finite_only=False)}

    def attach(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> RemovableHandle:
        """Project after every ``optimizer.step()`` from now on; ``.remove()`` of the handle ends it."""

        def after_step(*_: Any) -> None:
            self.project(model)

        return optimizer.register_step_post_hook(after_step)

    def _dense(self, model: nn.Module, finite_only: bool = True) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
        """The constrained weights of the model, each with the module that owns it."""
        adapted = {layer.name for layer in adapted_layers(model)}
        names: dict[int, list[str]] = {}  # of each tensor: a tied one has several
        for own, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(plain_name(own))
        seen = set()
        for prefix, module in model.named_modules():
            for own, parameter in module.named_parameters(prefix, recurse=False):
                if parameter.dim() < 2 or not parameter.is_floating_point() or is_adapter(own):
                    continue
                if id(parameter) in seen or plain_name(own) in adapted:
                    continue
                seen.add(id(parameter))
                known = [name for name in names[id(parameter)] if name in self.radii]
                if not known:
                    if parameter.requires_grad:
                        raise GenboundError(
                            f"the model trains {plain_name(own)!r}, which init does not have: give its starting value"
                        )
                    continue
                name = min(known, key=self.radii.__getitem__)
                if not finite_only or self.radii[name] < math.inf:
                    yield name, parameter, module
        found = adapted.union(*names.values())
        for name, radius in self.radii.items():
            if radius < math.inf and name not in found:
                raise GenboundError(
                    f"the model has no weight {name!r}, which is to be constrained; "
                    "is init that of this model? (sharded parameters, as of FSDP, have to be gathered first)"
                )

    def _adapted(self, model: nn.Module, finite_only: bool = True) -> Iterator[Adapted]:
        for layer in adapted_layers(model):
            if layer.name not in self.radii:
                raise GenboundError(f"an adapter changes {layer.name!r}, which init does not have")
            start = self._start(layer.name, layer.base)
            layer.check()
            if self._bases.get(layer.name) is not layer.base:  # once: it is frozen
                layer.check_base(start)
                self._bases[layer.name] = layer.base
            if not finite_only or self.radii[layer.name] < math.inf:
                yield layer

    def _start(self, name: str, parameter: Tensor) -> Tensor:
        start = self.init[name]
        if start.shape != parameter.shape:
            raise GenboundError(f"{name!r} has shape {tuple(parameter.shape)}, init has {tuple(start.shape)}")
        if start.device != parameter.device:
            start = self.init[name] = start.to(parameter.device)
        return start


def distance(weight: Tensor, start: Tensor, norm: str, module: nn.Module | None = None) -> float:
    """The norm of ``weight - start``, summed in float64.

    Args:
        weight, start: of one shape, two dimensions or more.
        norm: ``frobenius`` or ``mars``.
        module: that owns the weight; says for ``mars`` which axis the outputs are.
    """
    v = weight.detach().double() - start.double()
    if norm == "mars":
        return float(as_rows(v, module)[0].abs().sum(1).max())
    return float(torch.linalg.vector_norm(v))


def project_weight(weight: Tensor, start: Tensor, radius: float, norm: str, module: Any = None) -> Tensor | None:
    """The weight moved into its ball; ``None`` where it is there already.

    In float32 and float64 the displacement is handled in that format: a norm that is below the radius by more than its
    own rounding needs no second look. Everything else is settled in float64.

    Args:
        weight, start: of one shape, two dimensions or more.
        radius: of the ball around ``start``, >= 0, in the units of the weight.
        norm: ``frobenius`` or ``mars``.
        module: that owns the weight.

    Returns:
        A tensor in the shape and precision of ``weight``.
    """
    dtype = weight.dtype
    quick = dtype == start.dtype and dtype in (torch.float32, torch.float64)
    v = weight.detach() - start if quick else weight.detach().double() - start.double()
    eps = torch.finfo(v.dtype).eps
    sure = radius * (1 - 2 * eps)
    size = _size(v, norm, module)
    if size <= sure or (size <= radius * (1 + 2 * eps) and distance(weight, start, norm, module) <= radius):
        return None
    inside = radius * (1 - 4 * eps)  # room for roundings
    if norm == "mars":
        rows, back = as_rows(v, module)
        v = back(mars_ball(rows, inside))
    else:
        v = frobenius_ball(v, inside)
    if quick:
        new = start + v.to(dtype)
        if _size(new - start, norm, module) <= sure:
            return new
    return round_towards(start, v, dtype)


def _size(v: Tensor, norm: str, module: nn.Module | None) -> float:
    """The norm of a displacement, up to the roundings of its own format."""
    if norm == "mars":
        return float(as_rows(v, module)[0].abs().sum(1, dtype=torch.float64).max())
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))


def constraint_of(model: nn.Module, head: tuple[str, ...], settings: Settings) -> DistanceConstraint:
    """The constraint that the settings ask for, around the model's present weights.

    Args:
        model: the network before it is trained (and before it gets adapters).
        head: its head: constrained around zero with ``head_radius``, where that is given, and by ``radius`` otherwise.
            A head that starts at random is no pretrained weight, so a *relative* radius leaves it free.
        settings: of the run. Without any radius all balls are infinite, and the constraint only measures.

    Raises:
        GenboundError: a radius is of something that the model does not have.
    """
    _refuse_idle(model, head, settings)
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    layers = [name for name, p in model.named_parameters() if p.dim() >= 2]
    radii = _radii({name: state[name] for name in layers}, head, settings, model)
    if settings.head_radius is not None:
        for name in layers:
            if name in head:
                state[name] = torch.zeros_like(state[name])
                radii[name] = settings.head_radius
    return DistanceConstraint(state, radii, settings.norm, settings.norm_layers)


def _refuse_idle(model: nn.Module, head: tuple[str, ...], settings: Settings) -> None:
    """Refuse a radius that would do nothing."""
    if settings.head_radius is not None and not head:
        raise GenboundError("--head-radius: the model has no head that can be told from its body")
    scales = [f"{name}.weight" for name, module in model.named_modules() if is_norm_layer(module)]
    if settings.norm_layers is not None and not scales:
        raise GenboundError("--norm-layers: the model has no normalisation layer that scales its features")
    if settings.norm_layers is not None and settings.trained == "head" and not set(scales) & set(head):
        raise GenboundError("--norm-layers: --trained head leaves all normalisation layers of the model as they are")


def _radii(weights: dict[str, Tensor], head: tuple[str, ...], settings: Settings, model: nn.Module) -> dict[str, float]:
    radii = dict.fromkeys(weights, float("inf"))
    if settings.radius is None:
        return radii
    parts = parse_radius(settings.radius)
    norms = relative_radii(weights, 1.0, settings.norm, model)
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
