r"""Spectrally-normalised margin bound (Bartlett, Foster & Telgarsky, NeurIPS 2017).

.. math::
   L_0 \le \hat R_\gamma + \tilde O\!\left(\frac{\|X\|_F\,T}{\gamma n}\right),\qquad
   T = \Big(\prod_is_i\Big)\Big(\sum_i(b_i/s_i)^{2/3}\Big)^{3/2},\qquad
   s_i = \|W_i\|_2,\quad b_i = \|(W_i-W_i^0)^\top\|_{2,1},

where b is the sum of the Euclidean norms of the *rows* of a weight stored as [out, in] (for a convolution: of its
unrolled operator) and :math:`\|X\|_F = \sqrt n` times the root mean square norm of the measured inputs. In sums of
branches :math:`b_i\prod_{j\ne i}s_j` becomes :math:`b_iT_i` with the gain of :mod:`genbound.bounds.composition`: the
cover is built per layer, and only what is upstream and downstream of a layer changes.

``value`` is ``main_term``, :math:`\|X\|_F\,T/(\gamma n)`.

Forms:
    main_term: as above.
    dudley: with constants derived for this package (docs/bounds):
        :math:`8/n^{3/2} + 72\ln n\,\|X\|_F\sqrt{\ln(2W^2)}\,T/(\gamma n) + 3\sqrt{\ln(2/\delta)/(2n)}`, W the largest
        dimension of an unrolled matrix.
    optimal_alpha: the same with the best lower limit of the entropy integral, :math:`(24R/n)(1+\ln(n/(3R)))` for
        :math:`R = (2/\gamma)\|X\|_F\sqrt{\ln(2W^2)}\,T`; not available where 3R ≥ n, where the bound is vacuous.
    paper: not available: the constants of the published lemma could not be read.

All are measures: the theorem holds for norms fixed before the data are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable
from genbound.bounds.composition import compose
from genbound.bounds.forms import Form, absent, bound_value
from genbound.bounds.logs import LN10, ZERO, add, log
from genbound.bounds.reading import has_margin, norms, outside, require, spectral, tree_of, unverified, widest

REFERENCE = "Bartlett, Foster & Telgarsky 2017"


def spectral_complexity(two_one: dict[str, float], gains: dict[str, float]) -> float:
    r"""Log10 of :math:`T = (\sum_i (b_iT_i)^{2/3})^{3/2}`."""
    return 1.5 * add(*(2 / 3 * (two_one[name] + gains[name]) for name in two_one))


def confidence(num_data: int, delta: float) -> float:
    r""":math:`3\sqrt{\ln(2/\delta)/(2n)}`."""
    return 3 * math.sqrt(math.log(2 / delta) / (2 * num_data))


def dudley(radius: float, num_data: int) -> float:
    r"""Log10 of :math:`8/n^{3/2} + (36\ln n/n)R`, given log10 of :math:`R = (2/\gamma)\|X\|_F\sqrt{\ln(2W^2)}\,T`."""
    return add(log(8.0) - 1.5 * log(num_data), log(36 * math.log(num_data)) + radius - log(num_data))


def optimal_alpha(radius: float, num_data: int) -> float:
    r"""Log10 of :math:`(24R/n)(1+\ln(n/(3R)))`, given log10 of the same R."""
    if radius == ZERO:
        return ZERO
    fraction = (log(num_data) - log(3.0) - radius) * LN10
    if fraction <= 0:
        raise NotAvailable("vacuous: the entropy integral is empty (3R >= n)")
    return log(24.0) + radius - log(num_data) + log(1 + fraction)


def _bartlett(evidence: Evidence) -> BoundValue:
    tree, n = tree_of(evidence), evidence.num_data
    data = 0.5 * log(n) + log(evidence.number("input_norm", "rms_l2"))
    margin, moved = log(evidence.number("margin", "value")), norms(evidence, "two_one", "displacement")

    def main(side: str) -> float:
        gains = compose(tree, spectral(evidence, side)).gains
        return spectral_complexity(moved, gains) + data - margin - log(n)

    def with_constants(function: Callable[[float, int], float]) -> float:
        require(outside(evidence, "sums", "activations", "scales"))
        radius = log(2.0) + main("upper") + log(n) + log(math.sqrt(math.log(2 * widest(evidence) ** 2)))
        return add(function(radius, n), log(confidence(n, evidence.delta)))

    forms: dict[str, Form] = {
        "paper": absent("the constants of the published lemma could not be read: see dudley (derived)"),
        "dudley": lambda: with_constants(dudley),
        "optimal_alpha": lambda: with_constants(optimal_alpha),
    }
    note = unverified(outside(evidence, "activations", "scales"))
    return bound_value(main, forms, note, evidence.number("margin", "margin_loss"))


BARTLETT2017 = Bound(
    "bartlett2017",
    "margin bound with spectral norms and (2,1) distances, leading term",
    REFERENCE,
    ("structure", "spectral_norm", "layer_norms", "input_norm", "margin", "losses"),
    _bartlett,
    has_margin,
    bounds="error",
)
