r"""Relative flatness, as a norm (Petzka, Kamp, Adilova, Sminchisescu & Boley, NeurIPS 2021).

.. math:: \kappa = \sum_{s,s'}\langle w_s, w_{s'}\rangle\,\mathrm{Tr}\,H_{s,s'}

of the *feature layer*, the last one, whose neurons s have the weights :math:`w_s`. Their theorem bounds the gap by
:math:`n^{-2/(4+m)}\,(\kappa/(2m) + C_1 + C_2)`, m the number of features, where labels are locally constant in the
features; :math:`C_1, C_2` depend on the unknown density of the features. So ``value`` is :math:`\kappa` alone, in the
unit of the loss, and bounds nothing. (The theorem is quoted from memory.)

It does not change when layers of a ReLU network are rescaled so that its function stays. ``lower`` and ``upper`` are
two standard errors from the choice of the measured samples to either side.
"""

from __future__ import annotations

import math

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable
from genbound.bounds.forms import form

SEMS = 2.0


def _petzka2021(evidence: Evidence) -> BoundValue:
    found = evidence.quantities["relative_flatness"]
    layer = str(found.get("feature_layer"))
    reason = (found.get("without") or {}).get(layer)
    if reason:
        raise NotAvailable(f"of the last layer, {layer}: {reason}")
    value, sem = (evidence.number("relative_flatness", "layers", layer, key) for key in ("value", "data_sem"))
    error = SEMS * sem
    log10 = math.log10(value) if value > 0 else None
    forms = {"main_term": form(-math.inf if log10 is None else log10)}
    return BoundValue(value, value - error, value + error, log10, f"of the last layer, {layer}", forms)


PETZKA2021 = Bound(
    "petzka2021",
    "relative flatness of the last layer: its Hessian's trace weighted by products of the neurons' weights",
    "Petzka et al. 2021",
    ("relative_flatness",),
    _petzka2021,
    bounds="norm",
    kind="norm",
    interval_sems=SEMS,
)
