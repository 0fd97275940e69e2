r"""How many nats a sequence of integers takes under priors that are fixed before it is seen.

A *universal* prior is a mixture over the parameters of a family, so that nothing has to be fitted or sent beside the
integers: minus its logarithm is the code length. Both families here are mixed with Jeffreys' prior (Krichevsky &
Trofimov, IEEE Trans. Inf. Theory, 1981), and their probabilities add up to at most one over all sequences of a length.

* ``KT``: independent symbols from :math:`-m, \dots, m` of any frequencies, with m from the prior
  :math:`1/((m + 1)(m + 2))`.
* ``Laplace``: a discretised Laplace distribution whose zero has a frequency of its own. A sequence with Z entries that
  are not zero, and sizes that add up to T, has the probability

  .. math:: \frac{B(Z + \frac12, N - Z + \frac12)}{B(\frac12, \frac12)} \; 2^{-Z} \;
     \frac{B(Z + \frac12, T - Z + \frac12)}{B(\frac12, \frac12)}.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaln, gammaln

JEFFREYS = float(betaln(0.5, 0.5))


def code_nats(integers: np.ndarray) -> float:
    """Of the even mixture of both families: at most the shorter of both codes and ln 2.

    Args:
        integers: of any shape; how many there are is known beforehand.

    Example:
        >>> round(code_nats(np.zeros(100, dtype=int)), 2)
        1.28
    """
    flat = np.asarray(integers).reshape(-1).astype(np.int64)
    if flat.size == 0:
        return 0.0
    return float(math.log(2) - np.logaddexp(-kt_nats(flat), -laplace_nats(flat)))


def kt_nats(integers: np.ndarray) -> float:
    """Nats of integers ``[N]`` as independent symbols of any frequencies."""
    most = int(np.abs(integers).max())
    counts = np.bincount(integers + most, minlength=2 * most + 1)
    half, num = len(counts) / 2, len(integers)
    symbols = gammaln(half + num) - gammaln(half) - float((gammaln(counts + 0.5) - gammaln(0.5)).sum())
    return float(symbols + math.log((most + 1) * (most + 2)))


def laplace_nats(integers: np.ndarray) -> float:
    """Nats of integers ``[N]`` as zeros, signs and sizes."""
    sizes = np.abs(integers)
    num, nonzero, total = len(sizes), int((sizes > 0).sum()), int(sizes.sum())
    places = JEFFREYS - betaln(nonzero + 0.5, num - nonzero + 0.5)
    lengths = JEFFREYS - betaln(nonzero + 0.5, total - nonzero + 0.5)
    return float(places + nonzero * math.log(2) + lengths)
