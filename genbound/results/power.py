r"""How strong a correlation must be for so many runs to show it.

For two normal numbers with correlation :math:`\rho` Kendall's coefficient is :math:`\tau = \frac2\pi\arcsin\rho`, and
its estimate from n independent runs has the variance

.. math::

    \frac{2}{n(n-1)}\Big[1 - \tau^2 + 2(n-2)\Big(\frac19 - \frac{4}{\pi^2}\arcsin^2\frac\rho2\Big)\Big]

(at :math:`\rho = 0` the :math:`2(2n+5)/9n(n-1)` of the test). Ranks do not see the shape of either margin, so this
holds for all pairs that a monotone change of scale makes normal. The estimate is taken as normal.

Of fewer than twelve runs neither is the estimate normal, nor has the permutation test a level near 5 %: it knows few
orders, and of four runs none is rare enough. There the test's own limit is taken, and pairs are drawn: of
:math:`y = \rho x + \sqrt{1 - \rho^2}\, z` two runs are ordered as x orders them where
:math:`\rho/\sqrt{1 - \rho^2} > -\Delta z / \Delta x`, which is at a :math:`\tau` of its own for each two of each draw.

References:
    Esscher, On a method of determining correlation from the ranks of the variates, Skandinavisk Aktuarietidskrift 7,
        1924. Kendall, Rank Correlation Methods, 1948, chapter 9.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import optimize, stats

POWER, LEVEL = 0.8, 0.05
FEW = 12  # runs from which on the estimate is taken as normal
DRAWS = 40_000  # of fewer runs: the coefficient is known to some 0.003


def kendall_variance(rho: float, num_runs: int) -> float:
    """Variance of Kendall's coefficient of n pairs of normal numbers with correlation rho."""
    n, tau = num_runs, 2 / math.pi * math.asin(rho)
    pairs = 1 - tau**2 + 2 * (n - 2) * (1 / 9 - (2 / math.pi * math.asin(rho / 2)) ** 2)
    return 2 * pairs / (n * (n - 1))


def fewest_alike(num_runs: int, level: float = LEVEL) -> int | None:
    """Of how many pairs of n runs the exact two-sided test needs to see one order; ``None`` where all are too few."""
    orders = functools.reduce(np.convolve, (np.ones(k) for k in range(2, num_runs + 1)))  # by the pairs out of order
    rare = np.flatnonzero(2 * np.cumsum(orders) <= level * math.factorial(num_runs))
    return len(orders) - 1 - int(rare[-1]) if len(rare) else None


@functools.lru_cache(maxsize=1)
def _turns(num_runs: int) -> np.ndarray:
    """The coefficients from which on the pairs of n runs are in order, rising in each draw, ``[DRAWS, n(n - 1)/2]``."""
    x, z = np.random.default_rng(0).normal(size=(2, DRAWS, num_runs))
    one, other = np.triu_indices(num_runs, 1)
    at = -(z[:, one] - z[:, other]) / (x[:, one] - x[:, other])
    return np.sort(2 / math.pi * np.arctan(at), axis=1)


def power(tau: float, num_runs: int, level: float = LEVEL) -> float:
    """Chance that the two-sided test of independence sees a true coefficient tau in n independent runs."""
    if num_runs < FEW:
        alike = fewest_alike(num_runs, level)
        in_order = (_turns(num_runs) < tau).sum(1)
        seen = alike is not None and np.maximum(in_order, _turns(num_runs).shape[1] - in_order) >= alike
        return float(np.mean(seen))
    limit = stats.norm.isf(level / 2) * math.sqrt(kendall_variance(0.0, num_runs))
    spread = math.sqrt(max(kendall_variance(math.sin(math.pi * tau / 2), num_runs), 1e-300))
    return float(stats.norm.sf((limit - tau) / spread) + stats.norm.cdf((-limit - tau) / spread))


@functools.cache
def detectable_kendall(num_runs: int, wanted: float = POWER, level: float = LEVEL) -> float:
    """Smallest coefficient that n independent runs show with a chance of ``wanted``; NaN where none is large enough."""
    if num_runs < FEW:
        alike = fewest_alike(num_runs, level) if num_runs > 2 else None
        return math.nan if alike is None else float(np.quantile(_turns(num_runs)[:, alike - 1], wanted))
    if power(1.0, num_runs, level) < wanted:
        return math.nan
    return float(optimize.brentq(lambda tau: power(tau, num_runs, level) - wanted, 0.0, 1.0, xtol=1e-10))
