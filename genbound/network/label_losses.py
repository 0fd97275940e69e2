r"""Cross-entropy for other forms of labels than one class number for each row of scores.

* *One score*: a network with one output for each label says how likely class 1 is. Its cross-entropy is the binary one,
  with labels 0 and 1: that of two classes whose first score is zero.
* *Probabilities*: labels of the outputs' own shape, soft or one-hot, count by
  :math:`-\sum_c q_c \ln p_c`, which is minimised by :math:`p = q`.
* *Pictures*: scores ``[N, K, ...]`` with labels ``[N, ...]`` have their classes on the second axis, where torch's own
  cross-entropy has them. They are moved to the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.data.sample_parts import IGNORED, check_labelled
from genbound.errors import GenboundError
from genbound.network.loss_functions import (
    CROSS_ENTROPY,
    MULTI_LABEL,
    Factor,
    Loss,
    binary_curvature,
    binary_entropy,
    check_floor,
)


class BinaryLoss(Loss):
    """A loss of one score for each label, which is 0 or 1."""

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse labels that are neither 0 nor 1."""
        if outputs.numel() != targets.numel():
            raise GenboundError(
                f"labels of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(outputs.shape)}: a network "
                "with one score needs one label, 0 or 1, for each score"
            )
        check_labelled(targets.reshape(len(outputs), -1))
        wrong = (targets != 0) & (targets != 1) & (targets != IGNORED)
        if wrong.any():
            raise GenboundError(
                f"label {float(targets[wrong][0]):g} is neither 0 nor 1, and the model has one score for each label: "
                "write 0 and 1 for two classes, say --loss squared_error for numbers, or check the checkpoint's head"
            )

    def bounded(self, p_min: float, num_classes: int) -> Loss:
        """Of two smoothed probabilities, see :func:`~genbound.network.loss_functions.bounded_cross_entropy`."""
        check_floor(p_min, 2)

        def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
            targets, share = _per_position(outputs, targets)
            ahead = (2 * targets - 1) * outputs
            # From the smaller of the two probabilities, whose derivatives have all digits.
            p = p_min + (1 - 2 * p_min) * torch.where(ahead > 0, -ahead, ahead).sigmoid()
            return (torch.where(ahead > 0, -(-p).log1p(), -p.log()) * share).flatten(1).sum(1)

        return replace(self, **_smoothed(self.name, p_min), per_sample=per_sample)

    def class_frequencies(self, targets: np.ndarray, num_classes: int) -> np.ndarray:
        """Of the classes 0 and 1 among labels ``[M]``, ``[2]``."""
        ones = float(targets[targets != IGNORED].mean())
        return np.array([1 - ones, ones])


class SoftLoss(Loss):
    """A loss whose labels are probabilities of the classes, of the outputs' shape."""

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse labels that are no probabilities."""
        fits = targets.shape == outputs.shape
        if not fits or bool((targets < 0).any()) or bool(((targets.double().sum(-1) - 1).abs() > 1e-3).any()):
            raise GenboundError(
                f"labels of shape {tuple(targets.shape)} are no probabilities of {outputs.shape[-1]} classes (each row "
                "at least 0 and 1 in sum): say --loss multi_label where a sample has several labels or none, "
                "squared_error for numbers, or give class numbers"
            )

    def bounded(self, p_min: float, num_classes: int) -> Loss:
        """The loss of smoothed probabilities, see :func:`~genbound.network.loss_functions.bounded_cross_entropy`."""
        check_floor(p_min, num_classes)

        def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
            p = p_min + (1 - num_classes * p_min) * outputs.softmax(-1)
            return _rows(-(targets.to(outputs.dtype) * p.log()).sum(-1))

        return replace(self, **_smoothed(self.name, p_min), per_sample=per_sample)

    def class_frequencies(self, targets: np.ndarray, num_classes: int) -> np.ndarray:
        """The mean of labels ``[M * K]`` over the samples, ``[K]``."""
        return targets.reshape(-1, num_classes).mean(0)


def _smoothed(name: str, p_min: float) -> dict[str, Any]:
    """What a loss is once its probabilities are ``p_min`` at least: not convex, and of a known range."""
    return {"name": f"bounded_{name}({p_min:g})", "convex": False, "factor": None, "range": -math.log(p_min)}


def _per_position(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Labels in the outputs' shape and type, and the weight of each in its sample's mean."""
    targets = targets.view(outputs.shape)
    counted = (targets != IGNORED).to(outputs.dtype)
    share = counted / counted.flatten(1).sum(1).clamp(min=1).view(-1, *[1] * (outputs.dim() - 1))
    return targets.clamp(min=0).to(outputs.dtype), share


def _binary(outputs: Tensor, targets: Tensor) -> Tensor:
    targets, share = _per_position(outputs, targets)
    return (binary_entropy(outputs, targets) * share).flatten(1).sum(1)


def _binary_factor(outputs: Tensor, targets: Tensor) -> Factor:
    scale = (binary_curvature(outputs) * _per_position(outputs, targets)[1]).sqrt()
    return Factor(lambda coefficients: scale * coefficients)


def _binary_error(outputs: Tensor, targets: Tensor) -> Tensor:
    targets, share = _per_position(outputs, targets)
    return (((outputs > 0) != (targets > 0)).to(outputs.dtype) * share).flatten(1).sum(1)


def _rows(values: Tensor) -> Tensor:
    """The mean over a sample's positions, ``[N]``."""
    return values if values.dim() == 1 else values.flatten(1).mean(1)


def _soft(outputs: Tensor, targets: Tensor) -> Tensor:
    return _rows(-(targets.to(outputs.dtype) * outputs.log_softmax(-1)).sum(-1))


def _soft_factor(outputs: Tensor, targets: Tensor) -> Factor:
    """That of cross-entropy: the labels' part of the loss is linear in the outputs, and their sum is 1."""
    return CROSS_ENTROPY.output_factor(
        outputs, torch.zeros(outputs.shape[:-1], dtype=torch.long, device=outputs.device)
    )


def _soft_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The probability that a label drawn from the sample's own is another than the predicted one."""
    return _rows(1 - targets.to(outputs.dtype).gather(-1, outputs.argmax(-1, keepdim=True)).squeeze(-1))


BINARY = BinaryLoss("binary_cross_entropy", _binary, True, _binary_factor, _binary_error, unit="nats", lipschitz=1.0)
SOFT = SoftLoss(
    "soft_cross_entropy", _soft, True, _soft_factor, _soft_error, centred=True, unit="nats",
    lipschitz=CROSS_ENTROPY.lipschitz,
)  # fmt: skip


def fitted(loss: Loss, outputs: Tensor, targets: Tensor, flat: bool) -> Loss:
    """The loss for labels of this form.

    Args:
        loss: that was asked for.
        outputs: of a few samples, ``[N, ...]``, arranged as :func:`arrangement` says.
        targets: their labels.
        flat: the network itself gives ``[N]``; a user's loss is given that.
    """
    if flat and not loss.classes and loss.factor is None:
        return replace(loss, per_sample=lambda outputs, targets: loss.per_sample(outputs.squeeze(-1), targets))
    asked = loss.name in (CROSS_ENTROPY.name, MULTI_LABEL.name)
    if asked and outputs.numel() == targets.numel() and 1 in (outputs.shape[1], outputs.shape[-1]):
        probabilities = loss.name == MULTI_LABEL.name and bool(((targets != targets.round()) & (targets > 0)).any())
        return loss if probabilities else BINARY
    soft = loss.name == CROSS_ENTROPY.name and targets.shape == outputs.shape and outputs.dim() < 4
    return SOFT if soft else loss


def arrangement(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """How the outputs of a network become ``[N, ..., K]``, ``None`` where they are that, and a remark if it is a guess.

    Args:
        loss: that was asked for.
        outputs: of a few samples, as the network gives them.
        targets: their labels.
    """
    if outputs.dim() == 1:
        return (lambda scores: scores.unsqueeze(-1)), ""
    if not loss.classes or targets.is_floating_point() or outputs.dim() < 3:
        return None, ""
    second = targets.shape == (len(outputs), *outputs.shape[2:])
    last = targets.shape == outputs.shape[:-1]
    # Of sequences the last axis is usual (transformers), of pictures the second (torch's convolutions).
    moved = second and (outputs.dim() > 3 or not last)
    remark = ""
    if second and last:
        axis = "second" if moved else "last"
        remark = (
            f"the {axis} axis of the outputs {list(outputs.shape)} is taken for the classes; another would fit as well"
        )
    return ((lambda scores: scores.movedim(1, -1)) if moved else None), remark
