r"""Whether the tail of random draws is light enough for the standard error of their mean to be believed.

Rare large draws make most runs low, and give the same runs a small standard error. The excesses of large draws over a
threshold follow a generalised Pareto law with shape k: moments of order 1/k and more do not exist. So
:math:`k \ge 1/2` means that there is no standard error at all. Below that the error is known the better the lighter
the tail is.

References:
    Zhang & Stephens, A new and efficient estimation method for the generalized Pareto distribution, Technometrics,
    2009. Vehtari, Simpson, Gelman, Yao & Gabry, Pareto smoothed importance sampling, JMLR, 2024 (which draws are the
    tail, and the pull of small tails towards 1/2).
"""

from __future__ import annotations

import numpy as np

PRIOR = 10  # excesses that the pull towards a shape of 1/2 counts for
FEWEST = 5  # excesses that a shape can be fitted to


def pareto_shape(sizes: np.ndarray) -> float:
    r"""Shape k of the generalised Pareto law that the largest of these numbers follow.

    The tail of n numbers are the largest :math:`\min(n / 5, 3 \sqrt n)`.

    Args:
        sizes: not negative ``[n]``, in any unit.

    Returns:
        k without unit; infinite where the tail holds fewer than five numbers.
    """
    ordered = np.sort(np.asarray(sizes, float))
    num = int(np.ceil(min(0.2 * len(ordered), 3 * np.sqrt(len(ordered)))))
    if num < FEWEST or num >= len(ordered):
        return float("inf")
    excess = ordered[-num:] - ordered[-num - 1]
    excess = excess[excess > 0]
    if len(excess) < FEWEST:
        return float("-inf") if ordered[-1] == ordered[-num - 1] else float("inf")
    shape = _zhang_stephens(excess)
    return (len(excess) * shape + PRIOR * 0.5) / (len(excess) + PRIOR)


def _zhang_stephens(excess: np.ndarray) -> float:
    """Posterior mean of the shape over a grid of scales, for increasing positive excesses ``[m]``."""
    num = len(excess)
    points = 30 + int(np.sqrt(num))
    quartile = excess[int(num / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))) / (3 * quartile)
    shapes = np.log1p(-theta[:, None] * excess).mean(1)
    likelihood = num * (np.log(-theta / shapes) - shapes - 1)
    weights = np.exp(likelihood - likelihood.max())
    best = float((theta * weights).sum() / weights.sum())
    return float(np.log1p(-best * excess).mean())


def skewness_of_mean(counts: np.ndarray, cubes: np.ndarray, variances: np.ndarray) -> np.ndarray:
    r"""Skewness of a stratified mean, :math:`\sum_s \kappa_s / m_s^2 \big/ (\sum_s \sigma_s^2 / m_s)^{3/2}`.

    Args:
        counts: draws of each stratum, m ``[S]``.
        cubes: third central moment of a draw, in the cube of its unit ``[S, ...]``.
        variances: of a draw ``[S, ...]``.

    Returns:
        ``[...]`` without unit; 0 where nothing spreads.
    """
    counts = counts.reshape(-1, *[1] * (variances.ndim - 1)).astype(float)
    cube, variance = (cubes / counts**2).sum(0), (variances / counts).sum(0)
    return np.divide(cube, variance**1.5, out=np.zeros_like(cube), where=variance > 0)
