r"""What the spectra of the weights say, as norms that need no data: the stable rank and alpha of WeightWatcher.

``stable_rank`` is the mean over the layers of :math:`\|K\|_F^2/\|K\|_2^2`, of the weights as they are stored;
``sum`` is their sum. ``martin2021_alpha`` is the mean over the layers of the exponent of the tail of their eigenvalues
(:mod:`genbound.quantities.power_law`), the ``alpha`` of WeightWatcher's summary; ``lower`` and ``upper`` are two
standard errors of the fit to either side.

They bound neither the loss nor the error, do not depend on n, and know nothing of the initialisation. Both are the same
when a layer is multiplied by a number.
"""

from __future__ import annotations

import math

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable
from genbound.bounds.forms import form

SEMS = 2.0


def _stable_rank(evidence: Evidence) -> BoundValue:
    names = evidence.per_layer("matrix_norms")
    sides = ("lower", "upper")
    lower, upper = (sum(evidence.number("matrix_norms", "layers", n, "stable_rank", s) for n in names) for s in sides)
    mean = lower / len(names)
    if not mean > 0:
        raise NotAvailable("every weight is zero")
    forms = {"main_term": form(math.log10(mean)), "sum": form(math.log10(lower))}
    return BoundValue(mean, mean, upper / len(names), math.log10(mean), forms=forms)


def _alpha(evidence: Evidence) -> BoundValue:
    rows = evidence.per_layer("power_law")
    fitted = [row for row in rows.values() if row["alpha"] is not None]
    if not fitted:
        reasons = dict.fromkeys(row.get("reason", "") for row in rows.values())
        raise NotAvailable(f"no layer has an exponent: {'; '.join(reasons)}")
    mean = sum(row["alpha"] for row in fitted) / len(fitted)
    sem = math.sqrt(sum(row["alpha_sem"] ** 2 for row in fitted)) / len(fitted)
    note = f"mean over {len(fitted)} of {len(rows)} layers" if len(fitted) < len(rows) else ""
    forms = {"main_term": form(math.log10(mean), note)}
    return BoundValue(mean, mean - SEMS * sem, mean + SEMS * sem, math.log10(mean), note, forms)


STABLE_RANK = Bound(
    "stable_rank",
    "mean over layers of the stored weight's squared Frobenius over squared spectral norm; needs no data",
    "Rudelson & Vershynin 2007",
    ("matrix_norms",),
    _stable_rank,
    bounds="norm",
    kind="norm",
)
MARTIN2021_ALPHA = Bound(
    "martin2021_alpha",
    "mean over layers of the exponent of the eigenvalues' tail (WeightWatcher's alpha); needs no data",
    "Martin, Peng & Mahoney 2021",
    ("power_law",),
    _alpha,
    bounds="norm",
    kind="norm",
)
