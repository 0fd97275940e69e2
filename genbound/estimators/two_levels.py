r"""A mean of cheap draws, put right by a few that were drawn exactly as well.

With cheap draws :math:`y_1 \dots y_D` of a sample, and exact ones :math:`x_1 \dots x_P` of the same random numbers for
the first P of them, the estimate is

.. math:: T = \frac1D \sum_{d \le D} y_d + \frac1P \sum_{d \le P} (x_d - y_d), \qquad
   E\,T = E\,y + E\,x - E\,y = E\,x,

unbiased however wrong the cheap draws are. Its variance is

.. math:: \mathrm{Var}\,T =
   \frac{\mathrm{Var}\,y}{D} + \frac{\mathrm{Var}\,(x-y)}{P} + \frac{2\,\mathrm{Cov}(y, x-y)}{D}

with the covariance of :math:`y_d` and :math:`x_d - y_d` for the same d. The second term is estimated by
:math:`\overline{(x-y)^2}/P`, whose mean is too large by the squared bias over P: a sample may have one pair alone. The
third is at most :math:`2\,\mathrm{sd}(y)\,\mathrm{sd}(x-y)/D`, and that is put in.

References:
    Giles, Multilevel Monte Carlo path simulation, Operations Research, 2008.
"""

from __future__ import annotations

import numpy as np


def two_level_moments(cheap: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The estimate of every sample, and the sum of squares that gives its variance.

    Args:
        cheap: D draws of n samples ``[n, D]``, two or more of each.
        gaps: of the same draws what the exact ones are larger by ``[n, D]``, not a number where that is not known; of
            each sample one is.

    Returns:
        ``(mean [n], squares [n])`` in the unit of a draw and in its square. The mean's variance is ``squares / (D (D -
        1))``, as that of D draws whose squared deviations add up to that.
    """
    draws, pairs = cheap.shape[1], np.isfinite(gaps).sum(1)
    square, spread = np.nanmean(gaps**2, 1), cheap.var(1, ddof=1)
    variance = spread / draws + square / pairs + 2 * np.sqrt(spread * square) / draws
    return cheap.mean(1) + np.nanmean(gaps, 1), variance * draws * (draws - 1)
