r"""How far the probes of a trace spread, where there are few of each sample.

A draw :math:`y = z^\top R z` with independent signs z has the variance :math:`2 (\|R\|_F^2 - \sum_j R_{jj}^2)`. Two or
three draws of a sample often miss it altogether. Where R has one large eigenvalue, they are :math:`\lambda (u \cdot
z)^2`; all of them may be small, agree, and differ by a hundredth of what they should. If such a sample rules the error,
the spreads of all others hide it, for they are many.

The products :math:`Rz` that the draws are made from know more. :math:`E\|Rz\|^2 = \|R\|_F^2`, and the products of the
entries of :math:`z \circ Rz` of two draws have the mean :math:`R_{jj}^2`: so the *bound*, twice the difference, is the
variance in the mean, and it hardly varies but for such an R. (Of one layer's draw it is no less than the variance.) And
of such an R one product tells the eigenvector: :math:`q = Rz` is in proportion to u, however small. So a sample that
may *rule* the error gets one product more, along q, and the larger of both bounds.

What part of its bound a variance is, the *other* samples tell by their draws, weighted by their deviations. A sample
that may rule the error may also be one of another kind: for the sum over its layers its part c becomes :math:`c^{2/3}`.
Its variance is then the mean of its draws' own :math:`s^2` and of c times the bound, which counts for :data:`TRUST`
draws. The derivation, and on which networks these numbers were settled, is in ``docs/curvature.md``.

References:
    Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, 1990 (the
    variance). Meyer, Musco, Musco & Woodruff, Hutch++, SOSA 2021 (products along what random products found).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

RULES = 0.02  # of the sum of all bounds: from there on a sample may rule the error
TRUST = 8.0  # draws that a bound counts for beside a sample's own
HEAVY = 2.0  # draws of a sample that may rule the error tell as much as one that is normal: their tails are heavy
TOWARDS = 2 / 3  # power of the others' ratio, for the sum over the layers of a sample that may rule the error
ALONE = 0.9  # the same for single layers, whose bounds are larger than their variances anyway
LEAST = 0.1  # of the squares of a matrix are off its diagonal, whatever few draws tell


@dataclass(frozen=True)
class Bounds:
    """Bounds of the variance of one double backward probe of S samples, L layers and, in the last column, their sum.

    Attributes:
        values: ``[S, L + 1]``, in the unit of a draw squared.
        first: number of probes of each sample whose products they come from.
        ruling: samples that may rule the error ``[S]``.
    """

    values: np.ndarray
    first: int
    ruling: np.ndarray

    @classmethod
    def of(cls, squares: np.ndarray, diagonal: np.ndarray) -> Bounds:
        """From what the products of every sample's D probes tell.

        Args:
            squares: their squared norms in every layer ``[S, D, L]``.
            diagonal: unbiased estimates of the sums of squares of the diagonal in every layer ``[S, L]``.
        """
        norms = squares.mean(1)
        norms, diagonal = (np.concatenate([each, each.sum(1, keepdims=True)], 1) for each in (norms, diagonal))
        values = 2 * np.maximum(norms - diagonal, LEAST * norms)
        return cls(values, squares.shape[1], norms[:, -1] > RULES * norms[:, -1].sum())

    def raised(self, squares: np.ndarray) -> Bounds:
        """With what a further product tells of every ruling sample's squares off the diagonal, ``[R, L]``."""
        values = self.values.copy()
        further = 2 * np.concatenate([squares, squares.sum(1, keepdims=True)], 1)
        values[self.ruling] = np.maximum(values[self.ruling], further)
        return replace(self, values=values)

    def less_joint(self, weight: np.ndarray) -> Bounds:
        r"""Bounds for the draws less what joint ones stand for, :math:`x_i - w_i \sum_j x_j` and their sum.

        With :math:`R_i` the rows of layer i, :math:`x_i` is a form with :math:`\mathrm{sym}(E_i R)`, whose inner
        product with R is :math:`\|R_i\|^2` and whose squared norm is no larger.

        Args:
            weight: of each layer's share ``[S, L]``.
        """
        layers, total = self.values[:, :-1], self.values[:, -1:]
        own = np.maximum(layers * (1 - 2 * weight), 0.0) + weight**2 * total
        left = (1 - weight.sum(1, keepdims=True)) ** 2 * total
        return replace(self, values=np.concatenate([own, left], 1))

    def variances(self, counts: np.ndarray, squares: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Variance of one draw of some of the samples, which are drawn alike, and its degrees of freedom.

        Args:
            counts: draws of each ``[n]``, two at least.
            squares: sum of their squared deviations from their mean ``[n, C]``.
            rows: whose they are ``[n]``; C columns of the bounds from the last one on backwards.

        Returns:
            Both ``[n, C]``, the variance in the unit of a draw squared.
        """
        bounds, ruling = self.values[rows, -squares.shape[1] :], self.ruling[rows, None]
        free = (counts - 1)[:, None].astype(float)
        own = squares / free
        told = np.where(ruling, free / HEAVY, free)
        ratio, known = _others_ratio(own, bounds, free)
        # Without others the products say nothing of the draws' spread.
        freedom = np.maximum(told, np.where(known > 0, self.first, 1.0))
        powers = np.append(np.full(ratio.shape[1] - 1, ALONE), TOWARDS)
        ratio = np.where(ruling, np.maximum(ratio, ratio**powers), ratio)
        trust = TRUST * known / (known + TRUST)
        return (told * own + trust * ratio * bounds) / (told + trust), freedom


def _others_ratio(variances: np.ndarray, bounds: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What part of their bounds the other samples' variances are, weighted by their deviations.

    Args:
        variances: of a draw ``[n, C]``.
        bounds: of them ``[n, C]``.
        free: degrees of freedom of each variance ``[n, 1]``.

    Returns:
        The ratio and, by Satterthwaite's rule, its degrees of freedom; both 0 for a sample without others ``[n, C]``.
    """
    weight = np.sqrt(bounds)
    part = np.divide(variances, weight, out=np.zeros_like(variances), where=weight > 0)
    part, whole, square = (each.sum(0) - each for each in (part, weight, weight**2 / free))
    others = whole > 1e-9 * weight.sum(0)
    ratio = np.divide(np.maximum(part, 0.0), whole, out=np.zeros_like(variances), where=others)
    return ratio, np.divide(whole**2, square, out=np.zeros_like(variances), where=others & (square > 0))
