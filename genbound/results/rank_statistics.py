r"""How well one number tells the order of another.

The coefficients take values along the last axis and are vectorised over the others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

Statistic = Callable[..., np.ndarray]
WIDTH = 32  # of a bucket of ranks


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
    r"""Pairs that both sides order alike less those that they order otherwise, each pair once.

    Goes through the runs in the order of y and keeps, for every rank, how many of the runs seen so far lie below less
    those above. That table is split into buckets, so that a run costs :math:`O(\sqrt n)` and not O(n).

    Args:
        ranks: dense ranks of the one side, ``[B, n]``.
        y: the other side, ``[n]``.

    Returns:
        ``[B]``.
    """
    num_rows, n = ranks.shape
    num_buckets, kind = -(-n // WIDTH), np.int16 if n < 2**15 else np.int32
    places, buckets = np.arange(WIDTH, dtype=kind), np.arange(num_buckets, dtype=kind)
    within, between = (np.sign(side[None] - side[:, None]) for side in (places, buckets))
    outer, inner = np.zeros((num_rows, num_buckets), kind), np.zeros((num_rows * num_buckets, WIDTH), kind)
    score = np.zeros(num_rows, np.int64)
    bucket_of, place_of = (side.T.copy() for side in np.divmod(ranks.astype(np.intp), WIDTH))
    row_of = bucket_of + num_buckets * np.arange(num_rows)
    order = np.argsort(y, kind="stable")
    for tied in np.split(order, np.flatnonzero(np.diff(y[order])) + 1):
        for k in tied:
            score += outer.ravel().take(row_of[k])
            score += inner.ravel().take(row_of[k] * WIDTH + place_of[k])
        for k in tied:
            outer += between.take(bucket_of[k], axis=0)
            inner[row_of[k]] += within.take(place_of[k], axis=0)
    return score
