r"""The label confusion matrix F, inverted, or estimated from a network.

``F[y, z] = P(observed label z | true label y)``. Both estimators take the class probabilities of a network that was
trained on the noisy labels, :math:`\hat p(z\mid x)`, so they are as good as that network is calibrated; stop it before
it memorises its labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from genbound.errors import GenboundError


def inverse(confusion: np.ndarray) -> np.ndarray:
    """F's inverse.

    Args:
        confusion: F, ``[K, K]``.

    Raises:
        GenboundError: it has none: observed labels do not tell some mixtures of classes apart.
    """
    if np.linalg.cond(confusion) > 1e12:
        raise GenboundError(
            "the label confusion matrix is singular: observed labels say nothing about some classes (symmetric noise "
            "reaches that point at p = (K-1)/K); lower the noise, or use the forward correction"
        )
    return np.linalg.inv(confusion)


def anchor_points(probabilities: Any, percentile: float = 97.0) -> np.ndarray:
    r"""F from anchor points: samples that belong to one class almost surely.

    If :math:`p(y = i\mid x^i) = 1`, then :math:`\hat p(z\mid x^i) = F_{iz}`. The sample that is at the given percentile
    of :math:`\hat p(i\mid x)` stands for :math:`x^i`: the very largest is often an outlier.

    Args:
        probabilities: the network's probabilities on the training samples, ``[n, K]``.
        percentile: 100 takes the largest.

    Returns:
        Matrix ``[K, K]`` whose rows add up to 1.

    References:
        Patrini et al., "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach", CVPR 2017.
    """
    table = _probabilities(probabilities)
    if not 0 < percentile <= 100:
        raise GenboundError(f"percentile {percentile:g} is not in (0, 100]")
    rank = min(len(table) - 1, int(np.ceil(percentile / 100 * len(table))) - 1)
    anchors = np.argsort(table, axis=0, kind="stable")[rank]
    return table[anchors] / table[anchors].sum(1, keepdims=True)


def dual_t(probabilities: Any, labels: Any, percentile: float = 97.0) -> np.ndarray:
    r"""F as the product of two easier matrices, with the network's own prediction y' as a class in between.

    :math:`F_{iz} = \sum_j P(y' = j\mid y = i)\, P(z\mid y' = j)`: the first factor comes from anchor points of the
    network's probabilities, the second from counting observed labels among the samples predicted j, which needs no
    calibration. It suits networks that are sure of themselves; where the probabilities are calibrated the noise is
    already in the first factor and is counted twice: use :func:`anchor_points` there.

    Args:
        probabilities: the network's probabilities on the training samples, ``[n, K]``.
        labels: their observed labels, ``[n]``.
        percentile: of the anchor points.

    Returns:
        Matrix ``[K, K]`` whose rows add up to 1.

    References:
        Yao et al., "Dual T: Reducing Estimation Error for Transition Matrix in Label-noise Learning", NeurIPS 2020.
    """
    table, labels = _probabilities(probabilities), np.asarray(labels).astype(int)
    k = table.shape[1]
    if labels.shape != (len(table),) or labels.min() < 0 or labels.max() >= k:
        raise GenboundError(f"dual-T needs one observed label below {k} for each of the {len(table)} samples")
    counts = np.zeros((k, k))
    np.add.at(counts, (table.argmax(1), labels), 1)
    totals = counts.sum(1, keepdims=True)
    # A class that is never predicted has no counts: it is taken as free of noise.
    observed = np.where(totals > 0, counts / np.maximum(totals, 1), np.eye(k))
    return anchor_points(table, percentile) @ observed


def _probabilities(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not len(table) or (table < 0).any() or not np.allclose(table.sum(1), 1, atol=1e-3):
        raise GenboundError(
            "class probabilities must be a matrix [n, K] whose rows add up to 1: apply softmax to the scores"
        )
    return table
