r"""The Gaussian that a certificate is about: prior widths from a grid, the best posterior for them, their divergence.

A group g of d coordinates moved by v from the centre c of the prior :math:`N(c, \lambda^2 I)`. The posterior is
:math:`N(c + v, \Sigma)`; along the eigenvectors of :math:`\Sigma` its variances are :math:`s_j^2`, so that

.. math:: \mathrm{KL}_g = \frac{\|v\|^2}{2\lambda^2}
   + \frac12 \sum_j \Big( \frac{s_j^2}{\lambda^2} - 1 - \ln \frac{s_j^2}{\lambda^2} \Big).

Where the mean loss has curvature :math:`h_j \ge 0` in these directions, :math:`\tfrac12 \sum_j s_j^2 h_j + (\tau/n)
\mathrm{KL}` is least at :math:`1/s_j^2 = 1/\lambda^2 + n h_j/\tau`, and there it is :math:`\tau/n` times

.. math:: F(\lambda) = \frac12 \sum_j \ln\Big(1 + \frac{\lambda^2 n h_j}{\tau}\Big) + \frac{\|v\|^2}{2\lambda^2}.

So each group's λ is a search over the grid without a forward pass. The grid is fixed before any data are seen. What
choosing from it costs is in :mod:`genbound.posterior.prior_widths`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Fixed: 10^-4 to 10^1 in tenths of a decade. Another grid is another bound.
LAMBDAS = tuple(10.0 ** (k / 10) for k in range(-40, 11))


@dataclass(frozen=True)
class Spectrum:
    """The curvature of the mean loss along the axes of a group.

    Attributes:
        values: ``[J]``, not negative, in the loss's unit by the square of the weight's.
        counts: how many axes have each of them, ``[J]``.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def flat(cls, trace: float, size: int) -> Spectrum:
        """The same curvature along every axis, from the trace."""
        return cls(np.array([max(0.0, trace) / size]), np.array([size]))

    @classmethod
    def of(cls, eigenvalues: np.ndarray, copies: int = 1) -> Spectrum:
        """So many axes for each eigenvalue ``[J]``; negative ones are rounding and count as zero."""
        return cls(np.maximum(eigenvalues, 0.0), np.full(len(eigenvalues), float(copies)))


@dataclass(frozen=True)
class Width:
    """How wide prior and posterior of one group are.

    Attributes:
        prior: λ, in the weights' unit.
        variances: :math:`s_j^2` for each value of the spectrum, ``[J]``.
        kl: divergence of the posterior from the prior, in nats.
    """

    prior: float
    variances: np.ndarray
    kl: float


def objective(prior: float, square: float, spectrum: Spectrum, scale: float) -> float:
    """F at a width of the prior.

    Args:
        prior: λ.
        square: squared length of the displacement.
        spectrum: of the curvature.
        scale: n / τ.
    """
    bends = np.log1p(prior**2 * scale * spectrum.values) @ spectrum.counts
    return 0.5 * float(bends) + square / (2 * prior**2)


def divergence(prior: float, square: float, variances: np.ndarray, counts: np.ndarray) -> float:
    """KL of the posterior from the prior, in nats.

    Args:
        prior: λ.
        square: squared distance of the centres.
        variances: of the posterior along its axes ``[J]``.
        counts: how many axes have each ``[J]``.

    Example:
        >>> round(divergence(1.0, 2.0, np.array([1.0]), np.array([5])), 6)
        1.0
    """
    ratio = variances / prior**2
    return square / (2 * prior**2) + 0.5 * float((ratio - 1 - np.log(ratio)) @ counts)


def best_width(square: float, spectrum: Spectrum, scale: float) -> Width:
    """The prior of the grid at which F is least, and the posterior that is best for it.

    Args:
        square: squared length of the displacement.
        spectrum: of the curvature.
        scale: n / τ.
    """
    return width_of(min(LAMBDAS, key=lambda width: objective(width, square, spectrum, scale)), square, spectrum, scale)


def width_of(prior: float, square: float, spectrum: Spectrum, scale: float) -> Width:
    """The posterior that is best for a width of the prior.

    Args:
        prior: λ.
        square: squared length of the displacement.
        spectrum: of the curvature.
        scale: n / τ.
    """
    variances = 1 / (1 / prior**2 + scale * spectrum.values)
    return Width(prior, variances, divergence(prior, square, variances, spectrum.counts))


def log_union(num_groups: int) -> float:
    """What choosing each group's prior from the grid costs by a union over all combinations, in nats."""
    return num_groups * math.log(len(LAMBDAS))
