r"""A loss on noisy labels whose expectation is the loss on clean ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from genbound.data.label_confusion import check_confusion
from genbound.data.sample_parts import IGNORED
from genbound.errors import GenboundError
from genbound.finetune.label_noise.confusion import inverse
from genbound.network.forward import scores

PerSample = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats of each position, ``[N, ...]``; positions labelled -100 count zero.

    Args:
        logits: ``[N, ..., K]``.
        labels: ``[N, ...]``.
    """
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


class ConsistentLoss(nn.Module):
    r"""Correction of a loss for class-conditional label noise :math:`F_{yz} = P(\tilde y = z\mid y)`.

    ``backward``, for any per-sample loss:

    .. math:: \bar\ell(f(x), \tilde y) = \big[F^{-1}\,(\ell(f(x), 1), \dots, \ell(f(x), K))^\top\big]_{\tilde y},
        \qquad \mathbb E_{\tilde y\mid y}\,\bar\ell(f(x), \tilde y) = \ell(f(x), y).

    It is unbiased, and its range grows by the largest row sum of :math:`|F^{-1}|`. It can be negative and is unbounded
    below where :math:`\ell` is unbounded above: a network that is free to memorise drives it there, so use it with a
    :class:`~genbound.finetune.DistanceConstraint`.

    ``forward``, for cross-entropy: :math:`-\ln\sum_y F_{y\tilde y}\,p_y(x)`, the likelihood of the observed label. Its
    minimiser, not its expectation, is that of the clean loss; it stays non-negative and needs no inverse.

    With F = I both are the loss itself, bit for bit.

    Args:
        confusion: F, ``[K, K]``, rows adding up to 1; a matrix, an array or a tensor.
        reduction: ``mean`` (over the labelled positions), ``sum`` or ``none``.
        loss: per-sample loss ``(logits [N, ..., K], labels [N, ...]) -> [N, ...]``; cross-entropy by default.
        correction: ``backward`` or ``forward``.

    Raises:
        GenboundError: F is no confusion matrix, or has no inverse; in a call, where labels, outputs or the loss's shape
            do not fit it.

    **Cost**: K evaluations of the loss on the logits; for cross-entropy one log-softmax.

    Example:
        >>> F = [[0.9, 0.1], [0.3, 0.7]]
        >>> logits = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
        >>> noisy = ConsistentLoss(F, reduction="none")(logits, torch.tensor([0, 1]))  # both observed labels of one x
        >>> bool(torch.isclose(0.9 * noisy[0] + 0.1 * noisy[1], cross_entropy(logits[:1], torch.tensor([0]))[0]))
        True

    References:
        Natarajan et al., "Learning with Noisy Labels", NeurIPS 2013.
        Patrini et al., "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach", CVPR 2017.
        Ju, Li & Zhang, "Robust Fine-Tuning of Deep Neural Networks with Hessian-based Generalization Guarantees",
            ICML 2022.
    """

    weights: Tensor
    loss: PerSample

    def __init__(
        self, confusion: Any, reduction: str = "mean", *, loss: PerSample = cross_entropy, correction: str = "backward"
    ):
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise GenboundError(f"reduction {reduction!r} is unknown: use mean, sum or none")
        if correction not in ("backward", "forward"):
            raise GenboundError(f"correction {correction!r} is unknown: use backward or forward")
        if correction == "forward" and loss is not cross_entropy:
            raise GenboundError(
                "the forward correction is for cross-entropy alone: use the backward one for other losses"
            )
        matrix = check_confusion(confusion)
        self.reduction, self.loss, self.correction = reduction, loss, correction
        self.is_identity = bool(np.array_equal(matrix, np.eye(len(matrix))))
        weights = matrix if correction == "forward" else inverse(matrix)
        self.num_classes = len(matrix)
        # float64 whatever the network's precision, and no part of anybody's checkpoint.
        self.register_buffer("weights", torch.from_numpy(weights.copy()), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The corrected loss.

        Args:
            logits: ``[N, ..., K]``.
            labels: observed classes ``[N, ...]``; -100 does not count.
        """
        if self.is_identity and self.loss is cross_entropy:  # its mean adds up in an order of its own
            self._check(logits, labels)
            shape = labels.shape if self.reduction == "none" else ()
            return functional.cross_entropy(
                logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction=self.reduction
            ).view(shape)
        values = self.per_sample(logits, labels)
        if self.reduction == "none":
            return values
        if self.reduction == "sum":
            return values.sum()
        return values.sum() / (labels != IGNORED).sum()

    def per_sample(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The corrected loss of each position, in the shape of ``labels``; where there is no label it is zero."""
        self._check(logits, labels)
        if not self.is_identity and logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        counted = labels != IGNORED
        observed = labels.clamp(min=0)
        weights = self.weights.to(logits.device)
        if self.is_identity:
            values = self._of_class(logits, observed)
        elif self.correction == "forward":
            columns = weights.T.log().to(logits.dtype)[observed]  # ln F[y, observed] for every true class y
            values = -(logits.log_softmax(-1) + columns).logsumexp(-1)
        else:
            values = (weights.to(logits.dtype)[observed] * self._of_every_class(logits, labels)).sum(-1)
        return torch.where(counted, values, torch.zeros_like(values))

    def _of_every_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[N, ..., K]``: the loss that each class as the label would give."""
        if self.loss is cross_entropy:
            return -logits.log_softmax(-1)
        return torch.stack([self._of_class(logits, torch.full_like(labels, c)) for c in range(self.num_classes)], -1)

    def _of_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[N, ...]``: the loss that is corrected."""
        values = self.loss(logits, labels)
        if values.shape != labels.shape:
            raise GenboundError(
                f"the loss gives shape {tuple(values.shape)} for labels of shape {tuple(labels.shape)}: it must be that"
                ' of each position, such as reduction="none" gives'
            )
        return values

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        if logits.shape[-1] != self.num_classes:
            raise GenboundError(f"F is for {self.num_classes} classes, the network has {logits.shape[-1]} outputs")
        stray = labels[((labels < 0) & (labels != IGNORED)) | (labels >= self.num_classes)]
        if len(stray):
            raise GenboundError(
                f"label {int(stray[0])} is no class: F is for 0 … {self.num_classes - 1}, and {IGNORED} does not count"
            )

    def compute_loss_func(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """For ``transformers.Trainer(compute_loss_func=loss.compute_loss_func)``.

        With ``num_items_in_batch`` the sum over this part of the batch divided by the labelled positions of all its
        parts, so that gradient accumulation gives the mean over the whole batch.

        Args:
            outputs: of the model, with logits ``[N, ..., K]``.
            labels: observed classes ``[N, ...]``; -100 does not count.
            num_items_in_batch: labelled positions of the whole batch.

        Returns:
            The loss in nats, shape ``[]``.
        """
        logits = scores(outputs)
        values = self.per_sample(logits, labels)
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return values.sum() / count
