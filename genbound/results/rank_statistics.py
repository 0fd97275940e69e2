r"""How well one number tells the order of another.

The coefficients take values along the last axis and are vectorised over the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

Statistic = Callable[..., np.ndarray]
ROUNDING = 1e-12  # a coefficient this near to 1 is 1
PLACES = 64  # of a sequence that are held against each other


def pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation; NaN where either is constant."""
    x, y = (a - a.mean(axis, keepdims=True) for a in (np.asarray(x, float), np.asarray(y, float)))
    scale = np.sqrt((x * x).sum(axis) * (y * y).sum(axis))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (x * y).sum(axis) / scale, np.nan)


def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's correlation of ranks, ties with their mean rank."""
    return pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def kendall(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    r"""Kendall's :math:`\tau_b`, which corrects for ties; NaN where either is constant."""
    x, y = np.broadcast_arrays(*(np.moveaxis(np.asarray(a, float), axis, -1) for a in (x, y)))
    rows = zip(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), strict=True)
    return np.array([stats.kendalltau(*sides).statistic for sides in rows]).reshape(x.shape[:-1])


def partial_kendall(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    r"""Kendall's partial coefficient: how x goes along with y beyond what both have in common with a third number.

    .. math:: \tau_{xy \cdot z} = \frac{\tau_{xy} - \tau_{xz} \tau_{yz}}{\sqrt{(1 - \tau_{xz}^2)(1 - \tau_{yz}^2)}}

    Args:
        x, y, given: of the same runs, ``[n]``.

    Returns:
        The coefficient; NaN where one of the three is constant, or the third orders as x or y does.

    References:
        M. G. Kendall, Partial rank correlation, Biometrika 32, 1942.
    """
    xy, xz, yz = (float(stats.kendalltau(*pair).statistic) for pair in ((x, y), (x, given), (y, given)))
    left = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / math.sqrt(left) if left > ROUNDING else math.nan


STATISTICS: dict[str, Statistic] = {"pearson": pearson, "spearman": spearman, "kendall": kendall}


# -- ranks -------------------------------------------------------------------------------------------------------------


def dense_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 ``[n]``; equal values share one, and none is left out."""
    return np.unique(values, return_inverse=True)[1]


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 ``[n]``; equal values have their mean rank."""
    return stats.rankdata(values)


def tied_pairs(values: np.ndarray) -> int:
    """Ordered pairs of equal values, each value with itself too."""
    return int((np.unique(values, return_counts=True)[1] ** 2).sum())


def signs_of_pairs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 where both sides order a pair alike, -1 where otherwise, 0 at ties, ``[n, n]`` in single precision."""
    found = np.sign(x[:, None] - x[None]).astype(np.float32)
    found *= np.sign(y[:, None] - y[None])
    return found


def order_score(ranks: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pairs that both sides order alike less those that they order otherwise, each pair once.

    Args:
        ranks: dense ranks of the one side, ``[B, n]``.
        y: the other side, ``[n]``.

    Returns:
        ``[B]``.
    """
    n = ranks.shape[1]
    order = np.argsort(y, kind="stable")
    columns = np.ascontiguousarray(ranks.T[order], np.int16 if n < 2**15 else np.int32)
    tied = np.split(columns, np.flatnonzero(np.diff(y[order])) + 1)
    return _rises(columns, n) - sum(_rises(group, n) for group in tied if len(group) > 1)


def _rises(columns: np.ndarray, size: int) -> np.ndarray:
    """Pairs that rise less those that fall, of sequences that stand in columns.

    Some places at a time are held against each other, and against a count of all values before them.

    Args:
        columns: ``[m, B]``, values below ``size``.
        size: how many values there may be.

    Returns:
        ``[B]``.
    """
    num_columns = columns.shape[1]
    lanes, score = size * np.arange(num_columns), np.zeros(num_columns, np.int64)
    seen = np.zeros((num_columns, size), columns.dtype)
    for start in range(0, len(columns), PLACES):
        block = columns[start : start + PLACES]
        at = block + lanes
        if start:
            up_to = np.cumsum(seen, axis=1, dtype=seen.dtype).ravel().take(at).astype(np.int64)
            score += (2 * up_to - seen.ravel().take(at) - start).sum(0)
        for k in range(1, len(block)):
            rising, falling = block[:k] < block[k], block[:k] > block[k]
            score += np.add.reduce(rising.view(np.int8) - falling.view(np.int8), axis=0, dtype=np.int8)
        for places in at:
            seen.ravel()[places] += 1
    return score
