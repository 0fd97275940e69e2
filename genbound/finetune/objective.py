"""What a run minimises: the loss of each sample on its observed label, and a penalty on the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from genbound.checkpoints.names import is_adapter, plain_name
from genbound.finetune.constraint.low_rank import adapted_layers
from genbound.finetune.label_noise.consistent_loss import ConsistentLoss, PerSample, cross_entropy
from genbound.finetune.settings import Settings
from genbound.finetune.start import Start


@dataclass(frozen=True)
class Objective:
    """The two parts of what is minimised.

    Attributes:
        per_sample: logits ``[N, ..., K]`` and observed labels ``[N, ...]`` -> losses ``[N, ...]``.
        penalty: a number that is added to their mean; ``None`` for none.
    """

    per_sample: PerSample
    penalty: Callable[[], Tensor] | None


def objective_of(start: Start, confusion: np.ndarray | None, settings: Settings) -> Objective:
    """What a run minimises.

    Args:
        start: the network at its pretrained weights (and before it gets adapters).
        confusion: F to correct the loss for, ``[K, K]``; ``None`` leaves it as it is.
        settings: of the run.
    """
    return Objective(per_sample_loss(confusion, settings), distance_penalty(start, settings.distance_penalty))


def per_sample_loss(confusion: np.ndarray | None, settings: Settings) -> PerSample:
    """The loss of the run: logits ``[N, ..., K]`` and observed labels ``[N, ...]`` -> nats ``[N, ...]``."""
    smoothing = settings.label_smoothing
    if settings.generalised:
        return generalised_cross_entropy(settings.generalised)

    def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)

    base = smoothed if smoothing else cross_entropy
    if confusion is None:
        return base
    return ConsistentLoss(confusion, "none", loss=base, correction=settings.correction).per_sample


def generalised_cross_entropy(q: float) -> PerSample:
    r""":math:`(1 - p_y^q)/q`: cross-entropy as q → 0, the probability of error (half the mean absolute error) at q = 1.

    The gradient of a label that the network finds unlikely fades with :math:`p_y^q`.

    References:
        Zhang & Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
            NeurIPS 2018 (equation 6, without the truncation).
    """

    def per_sample(logits: Tensor, labels: Tensor) -> Tensor:
        return -torch.expm1(-q * cross_entropy(logits, labels)) / q

    return per_sample


def distance_penalty(start: Start, factor: float) -> Callable[[], Tensor] | None:
    r"""L2-SP as a function of no argument, or ``None`` where ``factor`` is 0.

    It is :math:`\frac{\lambda}{2}\|w - w^{(s)}\|^2` over all pretrained parameters, and
    :math:`\frac{\lambda}{2}\|w\|^2` for the head. Of a layer with a LoRA adapter, w is the merged weight.

    Args:
        start: the network at its pretrained weights; what is trained is its ``model`` at the time of a call.
        factor: :math:`\lambda`.

    References:
        Li, Grandvalet & Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
            ICML 2018.
    """
    if not factor:
        return None
    head = set(start.head)
    starts = {
        name: torch.zeros_like(p) if name in head else p.detach().clone() for name, p in start.model.named_parameters()
    }

    def penalty() -> Tensor:
        trained = {name: p for name, p in start.model.named_parameters() if p.requires_grad and not is_adapter(name)}
        squares = [(p - starts[plain_name(name)].to(p.device)).square().sum() for name, p in trained.items()]
        squares += [layer.squared_distance() for layer in adapted_layers(start.model)]
        return factor / 2 * sum(squares, start=torch.zeros(()))

    return penalty
