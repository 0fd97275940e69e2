r"""How strong a correlation must be for so many runs to show it.

For two normal numbers with correlation :math:`\rho` Kendall's coefficient is :math:`\tau = \frac2\pi\arcsin\rho`, and
its estimate from n independent runs has the variance

.. math::

    \frac{2}{n(n-1)}\Big[1 - \tau^2 + 2(n-2)\Big(\frac19 - \frac{4}{\pi^2}\arcsin^2\frac\rho2\Big)\Big]

(at :math:`\rho = 0` the :math:`2(2n+5)/9n(n-1)` of the test). Ranks do not see the shape of either margin, so this
holds for all pairs that a monotone change of scale makes normal. The estimate is taken as normal.

References:
    Esscher, On a method of determining correlation from the ranks of the variates, Skandinavisk Aktuarietidskrift 7,
        1924. Kendall, Rank Correlation Methods, 1948, chapter 9.
"""

from __future__ import annotations

import math

from scipy import optimize, stats

POWER, LEVEL = 0.8, 0.05


def kendall_variance(rho: float, num_runs: int) -> float:
    """Variance of Kendall's coefficient of n pairs of normal numbers with correlation rho."""
    n, tau = num_runs, 2 / math.pi * math.asin(rho)
    pairs = 1 - tau**2 + 2 * (n - 2) * (1 / 9 - (2 / math.pi * math.asin(rho / 2)) ** 2)
    return 2 * pairs / (n * (n - 1))


def power(tau: float, num_runs: int, level: float = LEVEL) -> float:
    """Chance that the two-sided test of independence sees a true coefficient tau in n independent runs."""
    limit = stats.norm.isf(level / 2) * math.sqrt(kendall_variance(0.0, num_runs))
    spread = math.sqrt(max(kendall_variance(math.sin(math.pi * tau / 2), num_runs), 1e-300))
    return float(stats.norm.sf((limit - tau) / spread) + stats.norm.cdf((-limit - tau) / spread))


def detectable_kendall(num_runs: int, wanted: float = POWER, level: float = LEVEL) -> float:
    """Smallest coefficient that n independent runs show with a chance of ``wanted``; NaN where none is large enough."""
    if num_runs < 3 or power(1.0, num_runs, level) < wanted:
        return math.nan
    return float(optimize.brentq(lambda tau: power(tau, num_runs, level) - wanted, 0.0, 1.0, xtol=1e-10))
