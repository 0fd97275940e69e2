r"""PAC-Bayes bound with one trace for all weights (Zhang, Li & Ju, TMLR 2024, arXiv 2306.08553).

For weights within a distance r of the initialisation, and :math:`\alpha \ge \mathrm{Tr}\,\nabla^2\ell(f_W(x), y)` for
all of them and all samples, with high probability

.. math:: L \le (1+\varepsilon)\hat L + (1+\varepsilon)\sqrt{\frac{C\,\alpha\,r^2}{n}} + O(n^{-3/4}).

``value`` is the leading term with constant 1, with r the distance that was found and :math:`\alpha` from the numbers
that ``trace_distance`` uses too:

.. math:: \sqrt{\frac{C\,\sum_i \max_{(x,y)} \mathrm{Tr}[H_i^+]\;\sum_i\|v_i\|_F^2}{n}} .

The sum of the layers' maxima is at least the largest trace of one sample, since every :math:`\mathrm{Tr}[H_i^+]` is at
least :math:`\mathrm{Tr}[H_i]`, and the layers may have their maxima at different samples. By the inequality of Cauchy
and Schwarz the value is at least ``trace_distance``, which gives every layer a noise of its own.

A measure: the maximum is over the measured samples and at the fine-tuned weights alone, r is not fixed in advance, and
the ``epsilon_…`` forms repeat the derivation of :mod:`genbound.bounds.ju2022hessian`. The statement is quoted from
memory and from the abstract; the form of the leading term is derived the same way with one noise for all weights.
"""

from __future__ import annotations

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.ju2022hessian import SEMS, RangedLoss, from_traces, trace_sides

REFERENCE = "Zhang, Li & Ju 2024"


def _zhang2024(evidence: Evidence) -> BoundValue:
    norms = evidence.per_layer("displacement_norm")
    square = sum(norms[name]["value"] ** 2 for name in evidence.per_layer("max_positive_trace"))
    maxima = ([sum(side.values()) * square] for side in trace_sides(evidence))
    return from_traces(evidence, RangedLoss.plain(evidence), *maxima)


ZHANG2024 = Bound(
    "zhang2024",
    "sqrt(C max Tr[H] |v|^2 / n) of all layers together, from the layers' largest traces",
    REFERENCE,
    ("max_positive_trace", "displacement_norm", "losses"),
    _zhang2024,
    interval_sems=SEMS,
    range_power=0.5,
    maximum_over="max_positive_trace",
)
