r"""Models of label noise: a matrix ``F[y, z] = P(observed z | true y)``, or another network's mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from genbound.data.label_confusion import check_confusion, read_matrix
from genbound.errors import GenboundError
from genbound.finetune.settings import ESTIMATED, Settings


def symmetric_noise(rate: float, num_classes: int, redraw: bool = False) -> np.ndarray:
    r"""The confusion matrix of noise that favours no class.

    Two conventions are in use, so say which:

    * ``redraw=False``: a share ``rate`` of the labels is wrong; :math:`F_{yz} = p/(K-1)` off the diagonal.
    * ``redraw=True``: a share ``rate`` is drawn again from all K classes, the true one included, so that only
      :math:`p(K-1)/K` are wrong; :math:`F_{yz} = p/K` off the diagonal.

    Example:
        >>> symmetric_noise(0.4, 5).diagonal()[0].item(), round(symmetric_noise(0.4, 5, redraw=True)[0, 0].item(), 3)
        (0.6, 0.68)
    """
    if num_classes < 2 or not 0 <= rate <= 1:
        raise GenboundError(
            f"symmetric noise needs a rate in [0, 1] and at least 2 classes, not {rate:g} and {num_classes}"
        )
    wrong = rate / num_classes if redraw else rate / (num_classes - 1)
    matrix = np.full((num_classes, num_classes), wrong)
    np.fill_diagonal(matrix, 1 - wrong * (num_classes - 1))
    return matrix


def named_matrix(text: str, num_classes: int) -> np.ndarray:
    """F, ``[K, K]``, from ``symmetric:P``, ``symmetric-redraw:P`` or the name of a file."""
    kind, _, rate = text.partition(":")
    if kind in ("symmetric", "symmetric-redraw"):
        try:
            return symmetric_noise(float(rate), num_classes, redraw=kind == "symmetric-redraw")
        except ValueError as error:
            raise GenboundError(f"label noise {text!r} is not understood: write {kind}:0.4") from error
    return check_confusion(read_matrix(text), num_classes)


def given_matrix(settings: Settings, num_classes: int) -> np.ndarray | None:
    """F to correct the loss for, ``[K, K]``; ``None`` where there is none, or where it is to be estimated."""
    if settings.confusion is None or settings.confusion in ESTIMATED:
        return None
    return named_matrix(str(settings.noise) if settings.confusion == "known" else settings.confusion, num_classes)


def flip_labels(labels: Any, confusion: Any, seed: int = 0) -> np.ndarray:
    """Draw observed labels for true ones, each independently from its row of F.

    Args:
        labels: true classes, ``[n]``.
        confusion: F, ``[K, K]``.
        seed: the same seed gives the same labels.
    """
    matrix, labels = check_confusion(confusion), np.asarray(labels)
    if (
        labels.ndim != 1
        or labels.dtype.kind not in "iu"
        or (len(labels) and not 0 <= labels.min() <= labels.max() < len(matrix))
    ):
        raise GenboundError(f"label noise for {len(matrix)} classes needs one class number below that for each sample")
    uniform = np.random.default_rng(seed).random(len(labels))
    cumulative = matrix.cumsum(1)
    cumulative[:, -1] = 1.0  # rounding must not leave a gap at the end
    return (uniform[:, None] >= cumulative[labels]).sum(1).astype(np.int64)


def labels_from_predictions(labels: Any, predictions: Any, rate: float | None = None, seed: int = 0) -> np.ndarray:
    """Instance-correlated noise: the labels that an auxiliary, weaker network predicts.

    Its mistakes sit on the hard samples, so no matrix F describes them; they are what labels made by a model or by
    hurried people look like.

    Args:
        labels: true classes, ``[n]``.
        predictions: the auxiliary network's classes, ``[n]``.
        rate: share of wrong labels to keep, chosen at random among its mistakes; ``None`` keeps all.
        seed: of that choice.

    Raises:
        GenboundError: the network makes fewer mistakes than asked for, or the rate is no share.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise GenboundError(
            f"{labels.shape} labels and {predictions.shape} predictions: give one prediction for each sample"
        )
    if rate is None:
        return predictions.astype(np.int64)
    if not 0 <= rate <= 1:
        raise GenboundError(f"a share of wrong labels lies in [0, 1], not {rate:g}")
    wrong, count = np.flatnonzero(labels != predictions), round(rate * len(labels))
    if count > len(wrong):
        raise GenboundError(
            f"noise of {rate:.1%} needs {count} wrong predictions, the auxiliary network makes {len(wrong)}"
        )
    kept = np.random.default_rng(seed).choice(wrong, count, replace=False)
    noisy = labels.astype(np.int64).copy()
    noisy[kept] = predictions[kept]
    return noisy
