r"""The binary Kullback-Leibler divergence, and how far a mean may lie above what was seen of it.

.. math:: \mathrm{kl}(q, p) = q \ln\frac qp + (1 - q) \ln\frac{1 - q}{1 - p}, \qquad
   \mathrm{kl}^{-1}(q, c) = \max\{p : \mathrm{kl}(q, p) \le c\}.

For M independent trials with values in [0, 1], whose expectations need not be equal, with mean k/M,
:math:`\mathrm{kl}^{-1}(k/M, \ln(1/\delta)/M)` is at least the mean of the expectations with probability
:math:`1 - \delta`: Chernoff's bound, with :math:`\prod_i (1 - r_i + r_i e^t) \le (1 - \bar r + \bar r e^t)^M`.
"""

from __future__ import annotations

import math

# What rounding may do to a divergence, relative to it and to one. An end that is safe by less is not believed.
RELATIVE, ABSOLUTE = 1e-12, 1e-15


def binary_kl(q: float, p: float) -> float:
    """The divergence of a coin with probability ``p`` from one with ``q``, in nats; infinite where p excludes q.

    Example:
        >>> round(binary_kl(0.5, 0.25), 6)
        0.143841
    """
    if not (0 <= q <= 1 and 0 <= p <= 1):
        raise ValueError(f"{q} and {p} must be probabilities")
    if (p == 0 and q > 0) or (p == 1 and q < 1):
        return math.inf
    up = q * math.log(q / p) if q > 0 else 0.0
    # log1p keeps the digits where both are small.
    down = (1 - q) * (math.log1p(-q) - math.log1p(-p)) if q < 1 else 0.0
    return max(0.0, up + down)


def kl_inverse(q: float, c: float) -> float:
    r"""The safe end of :math:`\mathrm{kl}^{-1}(q, c)`: never below it, above it by 1e-11 at most where c is moderate.

    Args:
        q: a mean of numbers in [0, 1].
        c: at least 0, in nats; where it is not finite the answer is 1.

    Example:
        >>> round(kl_inverse(0.0, 0.1), 6)  # 1 - exp(-0.1)
        0.095163
    """
    if not 0 <= q <= 1:
        raise ValueError(f"{q} must be a probability")
    if not c >= 0:
        raise ValueError(f"{c} must not be negative")
    if q == 1 or math.isinf(c):
        return 1.0
    limit = c * (1 + RELATIVE) + ABSOLUTE
    low, high = q, 1.0
    while high - low > 1e-15 * high:
        middle = low + (high - low) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if binary_kl(q, middle) <= limit else (low, middle)
    return high
