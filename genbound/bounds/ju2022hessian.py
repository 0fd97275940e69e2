r"""The Hessian distance bound and its two corollaries (Ju, Li & Zhang, ICML 2022).

For a loss in [0, C], with high probability over n training samples,

.. math::
   L(f_W) \le (1+\varepsilon)\,\hat L(f_W) + (1+\varepsilon)
   \frac{\sum_i \sqrt{C \max_{(x,y)} v_i^\top H_i^+[\ell(f_W(x),y)]\, v_i}}{\sqrt n} + O(n^{-3/4}).

``main_term`` is the fraction, constant 1, as published: a measure. Following the constants through
(docs/bounds/hessian_distance.md), with Taylor's and the divergence's halves and the linear PAC-Bayes bound, leaves the
factor :math:`1/\sqrt2` on the fraction if the Hessian of the sample may be exchanged for that of the population, an
error of lower order, and :math:`\sqrt{(1+\varepsilon)/(2\varepsilon)}` if it may not but the population's curvature in
the noise is not negative. The forms ``epsilon_0.1`` and ``epsilon_1`` are the latter as bounds of :math:`L - \hat L`,
with the term :math:`\varepsilon\hat L` and without the one of order :math:`n^{-3/4}`. All of them are measures: the
maximum and C are over a finite sample, and the best posterior covariance depends on the displacement.

Corollaries: with a distance constraint, :math:`v^\top H^+ v \le \mathrm{Tr}[H^+]\,\|v\|^2` gives ``trace_distance``;
with labels flipped by a confusion matrix F and the loss reweighted by its inverse, the curvature grows by
:math:`\rho = \|(F^{-1})^\top\|_{1,\infty}` at most, the largest row sum of :math:`|F^{-1}|`, which gives
``noisy_label_distance``. Its C and its empirical term are those of the reweighted loss: C is the largest size of
:math:`F^{-1}(\ell(f, 1), \dots, \ell(f, K))^\top` in any class, not in the observed one alone. The curvature is
measured at the observed labels. F = I leaves C as it is where the observed label has the largest loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable, log10_of

REFERENCE = "Ju, Li & Zhang 2022"
EPSILONS = (0.1, 1.0)
SEMS = 2.0  # standard errors of an estimated trace, to either side


def main_term(maxima: list[float], loss_range: float, num_data: int) -> float:
    r""":math:`\sum_i \sqrt{C\,m_i} / \sqrt n`, in the unit of the loss.

    Args:
        maxima: :math:`m_i`, the largest curvature over the samples of every layer, in the unit of the loss.
        loss_range: C, in the unit of the loss.
        num_data: n.

    Example:
        >>> main_term([4.0, 9.0], loss_range=1.0, num_data=100)
        0.5
    """
    return sum(math.sqrt(loss_range * max(m, 0.0)) for m in maxima) / math.sqrt(num_data)


def explicit(term: float, epsilon: float, empirical_loss: float) -> float:
    r""":math:`\varepsilon\hat L + (1+\varepsilon)\sqrt{(1+\varepsilon)/(2\varepsilon)}\,t`, in the unit of the loss.

    It bounds :math:`L - \hat L` to leading order.

    Args:
        term: the main term t.
        epsilon: ε.
        empirical_loss: :math:`\hat L`.
    """
    return epsilon * empirical_loss + (1 + epsilon) * math.sqrt((1 + epsilon) / (2 * epsilon)) * term


def label_noise_factor(confusion: np.ndarray) -> float:
    r""":math:`\|(F^{-1})^\top\|_{1,\infty}`: the largest row sum of :math:`|F^{-1}|`.

    Example:
        >>> float(round(label_noise_factor(np.array([[0.8, 0.2], [0.2, 0.8]])), 6))
        1.666667
    """
    return float(np.abs(np.linalg.inv(confusion)).sum(1).max())


@dataclass(frozen=True)
class RangedLoss:
    """What the bound says of a loss: its range C, and its mean over the training samples, if that is known.

    A loss that goes below zero is counted from its smallest value, so that it lies in [0, C].
    """

    range: float
    empirical: float | None

    @classmethod
    def plain(cls, evidence: Evidence) -> RangedLoss:
        """The loss itself."""
        mean = evidence.quantities.get("losses", {}).get("train_loss")
        return cls(evidence.loss_range, None if mean is None else mean - evidence.least_loss)

    @classmethod
    def reweighted(cls, evidence: Evidence) -> RangedLoss:
        """Of the loss reweighted for label noise."""
        return cls(*(evidence.number("losses", f"reweighted_{key}") for key in ("range", "train_loss")))


def from_maxima(
    evidence: Evidence, loss: RangedLoss, lower: list[float], value: list[float], upper: list[float], note: str
) -> BoundValue:
    """The bound from :math:`m_i` of every layer and its two sides."""
    least, middle, most = (main_term(maxima, loss.range, evidence.num_data) for maxima in (lower, value, upper))
    forms = {"main_term": {"log10": log10_of(middle)}}
    empirical = loss.empirical
    if empirical is not None:
        forms |= {f"epsilon_{e:g}": {"log10": log10_of(explicit(middle, e, empirical))} for e in EPSILONS}
    return BoundValue(middle, least, most, log10_of(middle), note, forms)


def _hessian_distance(evidence: Evidence) -> BoundValue:
    quantity = evidence.quantities["max_quadratic_form"]
    lower, upper = ([row[side] for row in quantity["layers"].values()] for side in ("lower", "upper"))
    loss, note = RangedLoss.plain(evidence), ""
    if quantity.get("convention") == "paper-code":
        loss, note = replace(loss, range=quantity.get("loss_range", loss.range)), quantity["note"]
    if quantity.get("maximum") == "found":
        note, exact = quantity["note"], all(row["exact"] for row in quantity["layers"].values())
        return replace(from_maxima(evidence, loss, lower, upper, upper, note), at_least=not exact)
    return from_maxima(evidence, loss, lower, upper, upper, note)


def _trace_distance(evidence: Evidence) -> BoundValue:
    return _trace_bound(evidence, RangedLoss.plain(evidence), 1.0)


def _trace_bound(evidence: Evidence, loss: RangedLoss, factor: float) -> BoundValue:
    """The bound with ``factor`` times Tr[H+] ||v||^2 of every layer."""
    norms = evidence.per_layer("displacement_norm")
    maxima = (
        [factor * trace * norms[name]["value"] ** 2 for name, trace in side.items()] for side in trace_sides(evidence)
    )
    return from_traces(evidence, loss, *maxima)


def trace_sides(evidence: Evidence) -> Iterator[dict[str, float]]:
    """The largest trace of every layer: lower side, value and upper side.

    A trace by probes has an interval that is certain of the probes; two of their standard errors come to either side.
    """
    for side, errors in (("lower", -SEMS), ("value", 0.0), ("upper", SEMS)):
        yield {
            name: max(0.0, row.get(side, row["value"]) + errors * row["sem"])
            for name, row in evidence.per_layer("max_positive_trace").items()
        }


def from_traces(
    evidence: Evidence, loss: RangedLoss, lower: list[float], value: list[float], upper: list[float]
) -> BoundValue:
    """As :func:`from_maxima`, of numbers made of the largest traces: at least that, where one was not proved to be."""
    found = from_maxima(evidence, loss, lower, value, upper, evidence.quantities["max_positive_trace"].get("note", ""))
    rows = evidence.per_layer("max_positive_trace").values()
    return replace(found, at_least=bool(found.value) and not all(row.get("exact", True) for row in rows))


def _noisy_label_distance(evidence: Evidence) -> BoundValue:
    if evidence.confusion is None:
        raise NotAvailable("needs the label confusion matrix F: give --confusion FILE")
    if np.linalg.cond(evidence.confusion) > 1e12:
        raise NotAvailable("the label confusion matrix F is singular: the labels say nothing about some classes")
    loss = RangedLoss.reweighted(evidence)
    found = _trace_bound(evidence, loss, label_noise_factor(evidence.confusion))
    note = f"C = {loss.range:.3g} and the training loss {loss.empirical:.3g} are those of the reweighted loss"
    return replace(
        found,
        note="; ".join(filter(None, (note, found.note))),
        empirical=loss.empirical,
        constant=evidence.quantities["losses"].get("reweighted_constant_loss"),
        gap=evidence.quantities["losses"].get("reweighted_gap"),
    )


HESSIAN_DISTANCE = Bound(
    "hessian_distance",
    "sum over layers of sqrt(C max v'H+v / n), the Hessian-based measure",
    REFERENCE,
    ("max_quadratic_form", "losses"),
    _hessian_distance,
    range_power=0.5,
    maximum_over="max_quadratic_form",
)
TRACE_DISTANCE = Bound(
    "trace_distance",
    "sum over layers of sqrt(C max Tr[H+] |v|^2 / n), its corollary for a distance constraint",
    REFERENCE,
    ("max_positive_trace", "displacement_norm", "losses"),
    _trace_distance,
    interval_sems=SEMS,
    range_power=0.5,
    maximum_over="max_positive_trace",
)
NOISY_LABEL_DISTANCE = Bound(
    "noisy_label_distance",
    "trace_distance with the loss reweighted for label noise F",
    REFERENCE,
    ("max_positive_trace", "displacement_norm", "losses"),
    _noisy_label_distance,
    interval_sems=SEMS,
    range_power=0.5,
    maximum_over="max_positive_trace",
)
