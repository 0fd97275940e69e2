r"""What is minimised, as one object: values, curvature in the output, convexity, range and unit.

The Hessian of a per-sample loss :math:`\ell(f, y)` in the network's output :math:`f` is written
:math:`\nabla_f^2 \ell = S\,\mathrm{diag}(s)\,S^\top`. For cross-entropy with
:math:`p = \mathrm{softmax}(f)` it is :math:`\mathrm{diag}(p) - pp^\top = SS^\top` with
:math:`S = \mathrm{diag}(\sqrt p) - p\sqrt p^\top`, so that the Gauss-Newton part of every Hessian block
comes from backward passes of the columns of :math:`S`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from genbound.data.sample_parts import IGNORED, check_labelled
from genbound.errors import GenboundError
from genbound.network.own_loss import in_double, twice_differentiable

AT_ONCE = 2**20  # numbers of outputs that a form is computed of at a time, in double precision


@dataclass(frozen=True)
class Factor:
    """Square root of the loss Hessian in the output, for every sample of a batch.

    Attributes:
        columns: maps coefficients ``[N, *output]`` to output cotangents ``[N, *output]`` (the product with S).
        signs: sign of each column ``[N, *output]``, or ``None`` where all are +1.
        last_vanishes: the columns of the last coordinate along the last axis are zero.
    """

    columns: Callable[[Tensor], Tensor]
    signs: Tensor | None = None
    last_vanishes: bool = False


@dataclass(frozen=True)
class Loss:
    r"""A per-sample loss.

    Attributes:
        name: what it is called in tables.
        per_sample: ``(outputs [N, ...], targets [N, ...]) -> [N]``.
        convex: its Hessian in the output is positive semidefinite wherever it exists.
        factor: ``(outputs, targets) -> Factor``; ``None`` lets :meth:`output_factor` decompose it numerically.
        error: 0-1 error per sample, ``None`` where there is no such thing.
        classes: the output's last axis holds class scores and targets are class numbers.
        centred: the last axis holds class scores, and the loss depends on their differences alone: its gradient adds
            up to 0. Targets are class numbers, or probabilities of the classes.
        range: largest value the loss can take, infinite where that is not known; where it is, the smallest is 0.
        unit: what the numbers are counted in.
        lipschitz: Lipschitz constant in the Euclidean norm of a sample's outputs, ``None`` where there is none. For
            cross-entropy the gradient p - e_y has norm at most sqrt 2; smoothing, clipping and means over tokens only
            shrink it.
    """

    name: str
    per_sample: Callable[[Tensor, Tensor], Tensor]
    convex: bool = False
    factor: Callable[[Tensor, Tensor], Factor] | None = None
    error: Callable[[Tensor, Tensor], Tensor] | None = None
    classes: bool = False
    centred: bool = False
    range: float = math.inf
    unit: str = ""
    lipschitz: float | None = None

    def output_factor(self, outputs: Tensor, targets: Tensor) -> Factor:
        """Square root of the Hessian in the output, of every sample, at ``outputs [N, ...]``."""
        if self.factor is not None:
            return self.factor(outputs, targets)
        return _numerical_factor(self.per_sample, outputs, targets)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gradient of every sample's loss in its own output, in the loss's unit per unit of output.

        Args:
            outputs: ``[N, ...]``.
            targets: labels, ``[N, ...]``.

        Returns:
            Of the shape of ``outputs``, detached.
        """
        outputs = outputs.detach().requires_grad_()
        with torch.enable_grad():
            total = self.per_sample(outputs, targets).sum()
        return self.with_all_digits(torch.autograd.grad(total, outputs)[0], targets)

    def with_all_digits(self, gradient: Tensor, targets: Tensor) -> Tensor:
        """The gradient in the output ``[N, ...]`` with the label's entry from the others, where they add up to 0.

        For :math:`p_y - 1` has no digits left where :math:`p_y` rounds to 1, while the others' p have all of theirs.
        Of probabilities for labels, that is the entry of the likeliest one.
        """
        if not self.centred:
            return gradient
        labels = (targets.argmax(-1) if targets.dim() == gradient.dim() else targets.clamp(min=0)).unsqueeze(-1)
        others = gradient.scatter(-1, labels, 0.0)
        return others.scatter(-1, labels, -others.sum(-1, keepdim=True))

    def class_frequencies(self, targets: np.ndarray, num_classes: int) -> np.ndarray | None:
        """Frequencies of the classes that occur among labels ``[M]``; ``None`` where there are no classes."""
        if not self.classes:
            return None
        _, counts = np.unique(targets[targets != IGNORED], return_counts=True)
        return counts / counts.sum()

    def bounded(self, p_min: float, num_classes: int) -> Loss:
        """The loss of probabilities that are ``p_min`` at least, of ``num_classes`` classes."""
        if not self.classes:
            raise GenboundError(f"--loss-range bounded:{p_min:g} needs a classification loss, not {self.name}")
        return bounded_cross_entropy(p_min, num_classes)

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse labels that the output has no class for."""
        if not self.classes:
            return
        if targets.shape != outputs.shape[:-1]:
            raise GenboundError(
                f"labels of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(outputs.shape)}: "
                f"{self.name} needs one class number for every row of scores, or a probability for every score; check "
                "the label column or the model's head, or give a --model that brings the scores to the labels' size"
            )
        if targets.is_floating_point():
            raise GenboundError(
                f"labels are floating-point numbers, and {self.name} needs class numbers: make them integers, or "
                "choose squared_error or multi_label as the loss"
            )
        check_labelled(targets)
        counted = targets[targets != IGNORED]
        num_classes = outputs.shape[-1]
        if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= num_classes):
            wrong = int(counted.max()) if int(counted.max()) >= num_classes else int(counted.min())
            raise GenboundError(
                f"label {wrong} is out of range: the model has {num_classes} classes (0 to {num_classes - 1}); "
                "check the label column or the checkpoint's head"
                + (f"; where it marks what has no label, write {IGNORED}" if targets.dim() > 1 else "")
            )


def output_form(loss: Loss, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
    """``u^T (Hessian of the loss in the output) u`` per sample, as a sum of squares that loses no digits.

    Args:
        loss: whose Hessian.
        outputs: where, ``[N, ...]``.
        targets: labels, ``[N, ...]``.
        u: directions, of the shape of ``outputs``.

    Returns:
        ``[N]`` in float64, in the loss's unit.
    """
    each = outputs[0].numel()
    return torch.cat([
        _output_form(loss, *(tensor[i : i + max(1, AT_ONCE // each)] for tensor in (outputs.detach(), targets, u)))
        for i in range(0, len(outputs), max(1, AT_ONCE // each))
    ])  # fmt: skip


def _output_form(loss: Loss, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
    loss, outputs = in_double(loss, outputs, targets), outputs.double()
    factor = loss.output_factor(outputs, targets)
    # S^T u subtracts the mean before it squares: the two-term form of a variance loses half the digits.
    transposed = torch.autograd.functional.vjp(factor.columns, torch.zeros_like(outputs), u.double())[1]
    squares = transposed.square()
    return (squares if factor.signs is None else squares * factor.signs).flatten(1).sum(1)


def _token_mean(values: Tensor, targets: Tensor) -> Tensor:
    """Mean over the labelled positions of each sample; one position per sample is the common case."""
    if values.dim() == 1:
        return values
    counted = (targets != IGNORED).to(values.dtype)
    return (values * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def _token_weight(targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Weight of each position in its sample's loss, with a trailing axis for the classes."""
    if targets.dim() == 1:
        return torch.ones_like(targets, dtype=dtype).unsqueeze(-1)
    counted = (targets != IGNORED).to(dtype)
    total = counted.flatten(1).sum(1).clamp(min=1)
    return (counted / total.view(-1, *[1] * (targets.dim() - 1))).unsqueeze(-1)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    log_p = outputs.log_softmax(-1)
    picked = -log_p.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return _token_mean(picked, targets)


def _cross_entropy_factor(outputs: Tensor, targets: Tensor) -> Factor:
    root = outputs.detach().softmax(-1).sqrt_()
    scale = _token_weight(targets, root.dtype).sqrt()
    # S sqrt(p) = 0: a reflection that takes the last coordinate to -sqrt(p) saves that column. Its normal is
    # sqrt(p) + e_last, whose square is 2 (1 + sqrt(p_last)); beside sqrt(p) nothing of the outputs' size is kept.
    least = 1 + root[..., -1:]

    def columns(coefficients: Tensor) -> Tensor:
        along = ((root * coefficients).sum(-1, keepdim=True) + coefficients[..., -1:]) / least
        found = torch.addcmul(coefficients, root, along, value=-1)
        found[..., -1:].sub_(along)
        mean = (root * found).sum(-1, keepdim=True)
        return found.addcmul_(root, mean, value=-1).mul_(root).mul_(scale)

    return Factor(columns, last_vanishes=True)


def _zero_one(outputs: Tensor, targets: Tensor) -> Tensor:
    return _token_mean((outputs.argmax(-1) != targets).to(outputs.dtype), targets)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.to(outputs.dtype).view_as(outputs)).square().flatten(1).sum(1)


def _squared_error_factor(outputs: Tensor, targets: Tensor) -> Factor:
    return Factor(lambda coefficients: math.sqrt(2.0) * coefficients)


def binary_entropy(scores: Tensor, q: Tensor) -> Tensor:
    r"""Cross-entropy :math:`-q \ln\sigma(z) - (1 - q) \ln\sigma(-z)` of every score z, in nats.

    Torch's own has the gradient :math:`\sigma(z) - q`, which has no digits left where :math:`\sigma(z)` rounds to 1.
    That of :math:`|z|\,(1 - q \text{ or } q) + \ln(1 + e^{-|z|})` has all of them, and so has the second derivative.

    Args:
        scores: z, of any shape.
        q: probability of a 1, of that shape and type.
    """
    above = scores > 0
    size = torch.where(above, scores, -scores)
    return torch.where(above, 1 - q, q) * size + (-size).exp().log1p()


def binary_curvature(scores: Tensor) -> Tensor:
    """Second derivative of :func:`binary_entropy` in every score, detached."""
    scores = scores.detach()
    return scores.sigmoid() * (-scores).sigmoid()


def _multi_label(outputs: Tensor, targets: Tensor) -> Tensor:
    return binary_entropy(outputs, targets.to(outputs.dtype).view_as(outputs)).flatten(1).mean(1)


def _multi_label_factor(outputs: Tensor, targets: Tensor) -> Factor:
    scale = (binary_curvature(outputs) / outputs[0].numel()).sqrt()
    return Factor(lambda coefficients: scale * coefficients)


def _numerical_factor(per_sample: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Factor:
    """Eigendecomposition of the output Hessian of any twice differentiable per-sample loss.

    Reverse mode over reverse mode, because not every loss of torch has a forward mode.

    Cost: a gradient of the loss alone (the network is not touched) for each of the K outputs, K x K per sample.
    """
    at = outputs.detach().requires_grad_()
    with torch.enable_grad():
        gradient = torch.autograd.grad(per_sample(at, targets).sum(), at, create_graph=True)[0].flatten(1)
        rows = [_row(gradient[:, k].sum(), at) for k in range(gradient.shape[1])]
    hessian = torch.stack(rows, 1)
    values, vectors = torch.linalg.eigh(hessian)
    root = vectors * values.abs().sqrt().unsqueeze(1)

    def columns(coefficients: Tensor) -> Tensor:
        return (root @ coefficients.flatten(1).unsqueeze(-1)).squeeze(-1).view_as(outputs)

    return Factor(columns, values.sign().view_as(outputs))


def _row(slope: Tensor, at: Tensor) -> Tensor:
    """One row of every sample's Hessian ``[N, K]``; zero where autograd knows of no dependence."""
    found = torch.autograd.grad(slope, at, retain_graph=True, allow_unused=True)[0] if slope.requires_grad else None
    return (torch.zeros_like(at) if found is None else found).flatten(1)


CROSS_ENTROPY = Loss(
    "cross_entropy",
    _cross_entropy,
    convex=True,
    factor=_cross_entropy_factor,
    error=_zero_one,
    classes=True,
    centred=True,
    unit="nats",
    lipschitz=math.sqrt(2.0),
)
SQUARED_ERROR = Loss(
    "squared_error", _squared_error, convex=True, factor=_squared_error_factor, unit="squared target units"
)


class LabelsLoss(Loss):
    """A loss of any number of labels a sample, each of which is there, is not, or is likely to some degree."""

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse labels that are no shares: the loss would have no floor, and its slope no limit."""
        wrong = (targets < 0) | (targets > 1)
        if wrong.any():
            raise GenboundError(f"label {targets[wrong][0]:g} is not between 0 and 1: 1 is there, 0 is not there")


MULTI_LABEL = LabelsLoss(
    "multi_label", _multi_label, convex=True, factor=_multi_label_factor, unit="nats", lipschitz=1.0
)

LOSSES: dict[str, Loss] = {loss.name: loss for loss in (CROSS_ENTROPY, SQUARED_ERROR, MULTI_LABEL)}


def check_floor(p_min: float, num_classes: int) -> None:
    """Refuse a smallest probability that ``num_classes`` classes cannot all have."""
    if not 0 < p_min < 1 / num_classes:
        raise GenboundError(
            f"--loss-range bounded:{p_min:g} needs 0 < PMIN < 1/K = {1 / num_classes:g} for {num_classes} classes"
        )


def bounded_cross_entropy(p_min: float, num_classes: int) -> Loss:
    r"""Cross-entropy of smoothed probabilities, :math:`-\ln(p_{\min} + (1 - K p_{\min})\,p_y)`.

    Its range is :math:`-\ln p_{\min}`. It is not convex in the output, so no block is positive semidefinite
    by structure alone.
    """
    check_floor(p_min, num_classes)

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        picked = outputs.softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return _token_mean(-(p_min + (1 - num_classes * p_min) * picked).log(), targets)

    return Loss(
        f"bounded_cross_entropy({p_min:g})", per_sample, convex=False, error=_zero_one, classes=True, centred=True,
        range=-math.log(p_min), unit="nats", lipschitz=math.sqrt(2.0),
    )  # fmt: skip


def clipped(loss: Loss, ceiling: float) -> Loss:
    r"""The loss :math:`\min(\ell, C)`: samples above the ceiling are flat and contribute no curvature.

    Its range is [0, C]. A user's loss below zero is refused: nobody knows how far it goes down.
    """
    if not (ceiling > 0 and math.isfinite(ceiling)):
        raise GenboundError(f"--loss-range clip:{ceiling:g} needs a positive, finite ceiling")

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        values = loss.per_sample(outputs, targets)
        if loss.factor is None and bool((values < 0).any()):
            raise GenboundError(
                f"the loss {loss.name} goes below 0, and clip:{ceiling:g} needs one in [0, C]: add a constant to "
                "it, or leave --loss-range at observed"
            )
        return values.clamp(max=ceiling)

    def factor(outputs: Tensor, targets: Tensor) -> Factor:
        inner = loss.output_factor(outputs, targets)
        below = (loss.per_sample(outputs, targets) <= ceiling).to(outputs.dtype)
        below = below.view(-1, *[1] * (outputs.dim() - 1))
        return Factor(lambda coefficients: below * inner.columns(coefficients), inner.signs, inner.last_vanishes)

    return replace(loss, name=f"min({loss.name}, {ceiling:g})", per_sample=per_sample, factor=factor, range=ceiling)


def ranged(loss: Loss, spec: str, num_classes: int) -> Loss:
    """The loss with a limited range.

    Args:
        loss: as it is.
        spec: ``observed`` leaves it so; ``clip:C`` is :func:`clipped` at C; ``bounded:PMIN`` is
            :func:`bounded_cross_entropy`.
        num_classes: of the network.
    """
    kind, _, argument = spec.partition(":")
    if kind == "observed" and not argument:
        return loss
    try:
        number = float(argument)
    except ValueError:
        number = math.nan
    if kind == "clip" and number == number:
        return clipped(loss, number)
    if kind == "bounded" and number == number:
        return loss.bounded(number, num_classes)
    raise GenboundError(f"loss range {spec!r} is not understood: use observed, clip:C or bounded:PMIN")


def get_loss(loss: str | Loss | Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss by name, as an object, or from a user's own per-sample function ``(outputs, targets) -> [N]``."""
    if isinstance(loss, Loss):
        own = loss.factor is None and not loss.classes
        return replace(loss, per_sample=twice_differentiable(loss.per_sample)) if own else loss
    if callable(loss):
        return Loss(getattr(loss, "__name__", "custom"), twice_differentiable(loss))
    if loss in LOSSES:
        return LOSSES[loss]
    raise GenboundError(f"unknown loss {loss!r}: use one of {', '.join(LOSSES)} or a per-sample function")
