r"""Exact binomial confidence limits, in logarithms: the level may be :math:`e^{-700}` and less.

.. math:: \bar p(k, n, \alpha) = \max\{p : P[\mathrm{Bin}(n, p) \le k] \ge \alpha\}

is at least the success probability of n independent trials with k successes, with probability :math:`1 - \alpha`
(Clopper & Pearson 1934; Langford 2005).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln

# Rounding of a logarithm of the tail: of the terms' log-gamma functions, n ln n in size.
ROUNDING = 4e-15


def log_binomial_cdf(k: int, n: int, p: float) -> float:
    """Natural logarithm of the probability of at most ``k`` successes in ``n`` trials.

    Args:
        k: at least 0; at n and above the probability is 1.
        n: trials.
        p: of a success.

    Cost: of the terms those within 40 standard deviations of the largest, which leaves out less than 1e-300 of the sum.

    Example:
        >>> round(math.exp(log_binomial_cdf(1, 3, 0.5)), 6)
        0.5
    """
    if k >= n or p <= 0:
        return 0.0
    if p >= 1:
        return -math.inf
    least = max(0, math.floor(min(k, n * p) - 40 * math.sqrt(n) - 200))
    j = np.arange(least, k + 1, dtype=float)
    terms = gammaln(n + 1) - gammaln(j + 1) - gammaln(n - j + 1) + j * math.log(p) + (n - j) * math.log1p(-p)
    largest = float(terms.max())
    return min(0.0, largest + math.log(float(np.exp(terms - largest).sum())))


def binomial_upper(k: int, n: int, log_level: float) -> float:
    r"""The safe end of :math:`\bar p(k, n, \alpha)`.

    Args:
        k: successes.
        n: trials.
        log_level: ln α, at most 0.

    Example:
        >>> round(binomial_upper(0, 10, math.log(0.05)), 6)  # 1 - 0.05 ** (1 / 10)
        0.258866
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} of {n} is no count of successes")
    if not log_level <= 0:
        raise ValueError(f"a level has a logarithm of at most 0, not {log_level}")
    if k == n or math.isinf(log_level):
        return 1.0
    limit = log_level - ROUNDING * (n * math.log(n + 1) + abs(log_level))
    low, high = k / n, 1.0
    while high - low > 1e-14:
        middle = low + (high - low) / 2
        low, high = (middle, high) if log_binomial_cdf(k, n, middle) >= limit else (low, middle)
    return high


def trials_for(limit: float, rate: float, log_level: float, most: int = 10**6) -> int | None:
    """The least number of trials whose exact limit is ``limit`` or less, if the fraction ``rate`` of them succeeds.

    Args:
        limit: what the upper confidence limit is to reach.
        rate: of successes, rounded up to a whole count.
        log_level: ln α.
        most: where to stop looking.

    Returns:
        ``None`` where even ``most`` trials do not give it: the rate is not below the limit.
    """

    def reached(n: int) -> bool:
        k = min(n, math.ceil(rate * n - 1e-12))
        # One look at the tail says of most numbers that they are too small.
        likely = limit >= 1 or log_binomial_cdf(k, n, limit) < log_level
        return likely and binomial_upper(k, n, log_level) <= limit

    if rate >= limit or not reached(most):
        return None
    high = 1
    while not reached(high):
        high = min(most, 2 * high)
    # Whole counts make it a saw, which a power of two may miss: every number is looked at, as long as they are few.
    if high <= 4096:
        return next(n for n in range(1, high + 1) if reached(n))
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
