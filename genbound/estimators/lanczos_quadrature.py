r"""The spectrum of a symmetric matrix from a few products: both ends with their sides, and the density.

Lanczos from a random unit vector b gives nodes :math:`\theta_j` and weights :math:`\omega_j` with
:math:`b^\top f(A) b = \sum_j \omega_j f(\theta_j)` for all polynomials f up to degree 2k - 1. Since b is uniform on
the sphere, d times the mean of this over several b is :math:`\mathrm{Tr} f(A)`: stochastic Lanczos quadrature. A b's
variance is :math:`\frac{2d}{d+2}(\mathrm{Tr} f(A)^2 - (\mathrm{Tr} f(A))^2/d)`, which the same quadrature estimates
from all b together; the spread of three of them would say little.

No Ritz value lies outside the spectrum, so the extreme ones are certain inner sides of the extreme eigenvalues. The
outer sides are those of :mod:`genbound.estimators.operator_norm`: the next Lanczos vector is :math:`p_k(A) b` with
:math:`\|p_k(A)b\| = 1`, hence :math:`|b_1|\,|p_k(\lambda_1)| \le 1`, and :math:`p_k` grows beyond the last Ritz value.
That needs no sign of A. It holds where :math:`|b_1|`, the component of b along the end's eigenvector, is above a value
that it falls below with small probability only.

References:
    Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl. 38,
    2017. Ghorbani, Krishnan & Xiao, An investigation into neural net optimization via Hessian eigenvalue density, ICML
    2019. van Dorsselaer, Hochstenbach & van der Vorst, Computing probabilistic bounds for extreme eigenvalues of
    symmetric matrices with the Lanczos method, SIAM J. Matrix Anal. Appl. 22, 2000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh_tridiagonal

from genbound.estimators.lanczos import tridiagonal_eigh
from genbound.estimators.operator_norm import a_posteriori, start_component

FAILURE = 1e-6  # probability that a side of a matrix's spectrum is wrong


@dataclass(frozen=True)
class Recursions:
    """Lanczos recursions of one matrix from independent start vectors.

    Attributes:
        alpha: diagonals ``[K, k]``; NaN behind the end of a recursion.
        beta: off-diagonals ``[K, k]``, the last one the norm of the residual; NaN likewise.
        dimension: d, the size of the matrix.
        precision: what a residual that was taken for rounding may have been, relative to the largest product.
        allowance: for rounding in the products, likewise.
    """

    alpha: np.ndarray
    beta: np.ndarray
    dimension: int
    precision: float
    allowance: float

    def quadratures(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Nodes and weights of each recursion, ``([k], [k])``; the weights add up to 1."""
        found = []
        for alpha, beta in self._each():
            values, vectors = tridiagonal_eigh(alpha, beta[:-1])
            found.append((values, vectors[0] ** 2))
        return found

    def largest(self) -> tuple[float, float]:
        """``(lower, upper)`` of the largest eigenvalue; the upper side is wrong with small probability."""
        return self._end(1.0)

    def smallest(self) -> tuple[float, float]:
        """``(lower, upper)`` of the smallest eigenvalue; the lower side is wrong with small probability."""
        lower, upper = self._end(-1.0)
        return -upper, -lower

    def _each(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each recursion up to its end; a residual that was taken for rounding is as large as it may have been."""
        found = []
        for alpha, beta in zip(self.alpha, self.beta, strict=True):
            alpha, beta = alpha[np.isfinite(alpha)], beta[np.isfinite(beta)].copy()
            beta[-1] = max(beta[-1], self.precision * self.scale, np.finfo(float).tiny)
            found.append((alpha, beta))
        return found

    @property
    def scale(self) -> float:
        """No less than the largest norm of a product with a unit vector that was seen."""
        beta = np.nan_to_num(self.beta)
        before = np.pad(beta, ((0, 0), (1, 0)))[:, :-1]
        return float(np.nanmax(np.abs(self.alpha) + beta + before))

    def _end(self, sign: float) -> tuple[float, float]:
        """Sides of the largest eigenvalue of ``sign`` times the matrix."""
        # One failure for each end and start vector: then all sides hold at once, and the best of each may be taken.
        failure = FAILURE / (2 * len(self.alpha))
        component = start_component(max(self.dimension, 3), failure)
        lower, upper = -np.inf, np.inf
        for alpha, beta in self._each():
            values = sign * eigh_tridiagonal(alpha, beta[:-1], eigvals_only=True)
            ritz = float(values.max())
            lower = max(lower, ritz)
            upper = min(upper, _beyond(sign * alpha, beta, ritz, component, self.scale))
        allowance = self.allowance * self.scale
        return lower - allowance, max(upper, lower) + allowance


def _beyond(alpha: np.ndarray, beta: np.ndarray, ritz: float, component: float, scale: float) -> float:
    """Where the next Lanczos polynomial reaches ``1 / component`` beyond the largest Ritz value."""
    step = scale or 1.0
    while True:
        limit = ritz + step
        found = a_posteriori(alpha.tolist(), beta.tolist(), ritz, component, limit)
        if found < limit:
            return found
        step *= 4
