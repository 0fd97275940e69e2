r"""Bound of the compressed network (Arora, Ge, Neyshabur & Zhang, ICML 2018).

With layer cushions :math:`\mu_i`, interlayer cushions :math:`\mu_{i\to}`, activation contraction c and, for convolutions, β and the
overlap :math:`\lceil\kappa/s\rceil` of kernel and stride,

.. math::
   \sqrt{\frac{c^2d^2\max_x\|f(x)\|^2\sum_i\frac{\beta_i^2\lceil\kappa_i/s_i\rceil^2}{\mu_i^2\mu_{i\to}^2}}{\gamma^2n}}

bounds, up to constants and logarithms, the 0-1 error of a *compressed* network beyond the margin loss of the original one; it says nothing
of the original network's own error. For dense layers β and the overlap are 1.

``value`` is ``main_term``, the expression above. ``effective_parameters`` is :math:`\max\|f\|^2\sum_i
\beta_i^2c_i^2\lceil\kappa_i/s_i\rceil^2/(\mu_i^2\mu_{i\to}^2)/\gamma^2`, the number of parameters after compression as the paper plots it. There is
no ``paper`` form: the theorem's constants and logarithms are not given.

A measure: γ and the cushions are those of the samples. The theorem needs an interlayer smoothness of at least 3d and lets a fraction ζ of the
samples be dropped, which adds ζ.
"""

from __future__ import annotations

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable
from genbound.bounds.forms import bound_value
from genbound.bounds.logs import add, log
from genbound.bounds.reading import depth, outside, positive_margin, unverified

REFERENCE = "Arora, Ge, Neyshabur & Zhang 2018"


def cushion_sum(rows: list[tuple[float, float, float, float]]) -> float:
    r"""Log10 of :math:`\sum_i a_i^2\beta_i^2/(\mu_i^2\mu_{i\to}^2)` over (a, β, μ, μ→) of every layer."""
    return add(*(2 * (log(a) + log(beta) - log(mu) - log(across)) for a, beta, mu, across in rows))


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


def _conditions(evidence: Evidence, layers: int) -> str:
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
    margin, output = (log(evidence.number(*key)) for key in (("margin", "value"), ("compression", "max_output_l2")))
    contraction = evidence.number("compression", "contraction")
    rows, own = [], []
    for name, row in evidence.per_layer("compression").items():
        mu, across, overlap = (
            evidence.number("compression", "layers", name, key)
            for key in ("layer_cushion", "interlayer_cushion", "conv_factor")
        )
        beta = 1.0 if row.get("beta") is None else evidence.number("compression", "layers", name, "beta")
        rows.append((overlap, beta, mu, across))
        mine = contraction if row.get("contraction") is None else float(row["contraction"])
        own.append((overlap * mine, beta, mu, across))

    def main(side: str) -> float:
        return log(contraction) + log(layers) + output - margin + 0.5 * (cushion_sum(rows) - log(n))

    def paper() -> float:
        raise NotAvailable("the theorem hides constants and logarithms")

    forms = {"paper": paper, "effective_parameters": lambda: 2 * (output - margin) + cushion_sum(own)}
    return bound_value(main, forms, _conditions(evidence, layers), evidence.number("margin", "margin_loss"))


ARORA2018 = Bound(
    "arora2018",
    "bound of the compressed network from cushions and contractions, leading term",
    REFERENCE,
    ("structure", "layer_norms", "compression", "margin", "losses"),
    _arora,
    _applies,
    bounds="error",
)
