r"""Bound of the compressed network (Arora, Ge, Neyshabur & Zhang, ICML 2018).

With layer cushions :math:`\mu_i`, interlayer cushions :math:`\mu_{i\to}`, activation contraction c and, for
convolutions, β and the overlap :math:`\lceil\kappa/s\rceil` of kernel and stride,

.. math::
   \sqrt{\frac{c^2d^2\max_x\|f(x)\|^2\sum_i\frac{\beta_i^2\lceil\kappa_i/s_i\rceil^2}{\mu_i^2\mu_{i\to}^2}}{\gamma^2n}}

bounds, up to constants and logarithms, the 0-1 error of a *compressed* network beyond the margin loss of the original
one; it says nothing of the original network's own error. For dense layers β and the overlap are 1.

``value`` is ``main_term``, the expression above. ``effective_parameters`` is
:math:`\max\|f\|^2\sum_i \beta_i^2c_i^2\lceil\kappa_i/s_i\rceil^2/(\mu_i^2\mu_{i\to}^2)/\gamma^2`, the number of
parameters after compression as the paper plots it. There is no ``paper`` form: the theorem's constants and logarithms
are not given.

``lower`` and ``upper`` are two standard errors of the interlayer cushions and of β to either side. The layers' errors
are added up: probes into one later layer are shared.

A measure: γ and the cushions are those of the samples. The theorem needs an interlayer smoothness of at least 3d and
lets a fraction ζ of the samples be dropped, which adds ζ.
"""

from __future__ import annotations

import math
from dataclasses import replace

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.forms import Form, absent, bound_value
from genbound.bounds.logs import add, log
from genbound.bounds.reading import depth, outside, positive_margin, unverified

REFERENCE = "Arora, Ge, Neyshabur & Zhang 2018"
SEMS = 2.0  # standard errors to either side


Row = tuple[float, float, float, float]  # of a layer: a, β, μ, μ→


def cushion_sum(rows: list[Row]) -> float:
    r"""Log10 of :math:`\sum_i a_i^2\beta_i^2/(\mu_i^2\mu_{i\to}^2)` over (a, β, μ, μ→) of every layer."""
    return add(*(2 * (log(a) + log(beta) - log(mu) - log(across)) for a, beta, mu, across in rows))


def relative_error(rows: list[Row], errors: list[float]) -> float:
    r"""Standard error of the root of the cushion sum, relative to it: every layer's, weighed by its share of the sum.

    Args:
        rows: (a, β, μ, μ→) of every layer.
        errors: of every layer, that of β / μ→ relative to it.
    """
    whole = cushion_sum(rows)
    return sum(10 ** (cushion_sum([row]) - whole) * error for row, error in zip(rows, errors, strict=True))


def _applies(evidence: Evidence) -> str | None:
    structure = evidence.quantities["structure"]
    if structure["tree"] is None:
        return (
            f"the theorem is for networks of linear layers and ReLU: {structure.get('reason') or 'unknown structure'}"
        )
    for name in evidence.per_layer("compression"):
        for key in ("layer_cushion", "interlayer_cushion"):
            if not evidence.number("compression", "layers", name, key) > 0:
                return f"the {key.replace('_', ' ')} of {name} is zero"
    return positive_margin(evidence)


def _cushions(evidence: Evidence) -> dict[str, Row]:
    """Layer -> its overlap, β (1 where it has none), layer cushion and interlayer cushion."""
    found = {}
    for name, row in evidence.per_layer("compression").items():
        mu, across, overlap = (
            evidence.number("compression", "layers", name, key)
            for key in ("layer_cushion", "interlayer_cushion", "conv_factor")
        )
        beta = 1.0 if row.get("beta") is None else evidence.number("compression", "layers", name, "beta")
        found[name] = (overlap, beta, mu, across)
    return found


def _conditions(evidence: Evidence, layers: int) -> str:
    """What the value bounds, and which conditions of the theorem are not known to hold."""
    found = []
    smoothness = evidence.quantities["compression"].get("smoothness")
    if smoothness is None:
        found.append(f"interlayer smoothness not measured (the theorem needs at least 3d = {3 * layers})")
    elif smoothness < 3 * layers:
        found.append(f"interlayer smoothness {smoothness:.3g} is below the 3d = {3 * layers} that the theorem needs")
    if outside(evidence):
        found.append(outside(evidence))
    zeta = evidence.quantities["compression"].get("zeta") or 0.0
    dropped = f"; {zeta:.3g} of the samples are dropped, which adds as much" if zeta > 0 else ""
    return "bounds the compressed network" + (f"; {unverified(', '.join(found))}" if found else "") + dropped


def _arora(evidence: Evidence) -> BoundValue:
    layers, n = depth(evidence), evidence.num_data
    margin, output = log(evidence.number("margin", "value")), log(evidence.number("compression", "max_output_l2"))
    contraction, cushions = evidence.number("compression", "contraction"), _cushions(evidence)

    def main(side: str) -> float:
        return log(contraction) + log(layers) + output - margin + 0.5 * (cushion_sum([*cushions.values()]) - log(n))

    def effective_parameters() -> float:
        rows = []
        for name, (overlap, beta, mu, across) in cushions.items():
            own = evidence.per_layer("compression")[name].get("contraction")
            rows.append((overlap * (contraction if own is None else float(own)), beta, mu, across))
        return 2 * (output - margin) + cushion_sum(rows)

    forms: dict[str, Form] = {
        "paper": absent("the theorem hides constants and logarithms"),
        "effective_parameters": effective_parameters,
    }
    found = bound_value(main, forms, _conditions(evidence, layers), evidence.number("margin", "margin_loss"))
    found = replace(found, added=evidence.quantities["compression"].get("zeta") or 0.0)
    error = SEMS * relative_error([*cushions.values()], _errors(evidence))
    if found.value is None or not error:
        return found
    return replace(found, lower=found.value * max(0.0, 1 - error), upper=found.value * (1 + error))


def _errors(evidence: Evidence) -> list[float]:
    """Relative standard error of β / μ→ of every layer."""
    found = []
    for row in evidence.per_layer("compression").values():
        parts = [(row.get(f"{key}_sem") or 0.0) / (row.get(key) or 1.0) for key in ("beta", "interlayer_cushion")]
        found.append(math.hypot(*parts))
    return found


ARORA2018 = Bound(
    "arora2018",
    "bound of the compressed network from cushions and contractions, leading term",
    REFERENCE,
    ("structure", "layer_norms", "compression", "margin", "losses"),
    _arora,
    _applies,
    bounds="error",
    maximum_over="compression",
    interval_sems=SEMS,
)
