r"""Size-free bounds for convolutional networks near their initialisation (Long & Sedghi, ICLR 2020).

For W parameters, inputs of norm at most χ, a λ-Lipschitz loss in [0, M], L layers with pretrained operator norms at most 1 + ν and
:math:`\beta = \sum_i\|\mathrm{op}(K_i)-\mathrm{op}(K_i^0)\|_2`, the network is Lipschitz in its parameters with constant
:math:`B_L = \chi\lambda\beta e^{\nu L+\beta}`. The paper's three forms have an unnamed constant, taken as 1 here:

.. math::
   \texttt{exponential} &= M\left(B_L\sqrt{W/n} + \sqrt{\ln(1/\delta)/n}\right)\\
   \texttt{square\_root} &= M\sqrt{(W(\beta+\nu L+\ln(\chi\lambda\beta)) + \ln(1/\delta))/n}\quad\text{if } \chi\lambda\beta e^\beta\ge5\\
   \texttt{fast} &= M(W(\beta+\nu L+\ln(\chi\lambda\beta n)) + \ln(1/\delta))/n\quad\text{(adds to }(1+\eta)\hat L\text{)}

``value`` is ``main_term``, the first summand of ``exponential`` with λ = 1: the form that published comparisons print (the numbers
there are of its size). ``minimum`` is the smallest of the three. Because of the unnamed constant there is no ``paper`` form.

Derived for this package (docs/bounds), with all constants:

* ``chaining``: :math:`32.47\,B_L\sqrt{W/n} + M\sqrt{\ln(1/\delta)/(2n)}`;
* ``cover``: :math:`\min_\varepsilon 2\varepsilon + M\sqrt{(W\ln(1+2B_L/\varepsilon)+\ln(1/(\delta p_\varepsilon)))/(2n)}`, ε on a fixed grid with weights p: B_L
  stands inside the logarithm only;
* ``cover_per_layer``: the same with :math:`\chi\lambda\sum_i\beta_i\prod_{j\ne i}(\|\mathrm{op}K_j^0\|+\beta_j)` in place of B_L (sums of branches through the
  gains), far smaller for pretrained networks, whose norms exceed 1 by much.

All are measures: the theorem holds for a β fixed before the data are seen.
"""

from __future__ import annotations

import math

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable
from genbound.bounds.composition import compose, layer_names
from genbound.bounds.forms import bound_value
from genbound.bounds.logs import LN10, add, log, power
from genbound.bounds.reading import has_structure, outside, require, sizes, spectral, tree_of, unverified

REFERENCE = "Long & Sedghi 2020"
CHAINING = 32.47  # 24 times the integral of sqrt(ln(1 + 2/u)) over [0, 1], 1.352581, rounded up
CONSTANT_NOTE = "the paper's constant is unnamed, taken as 1"


def _layer_sum(values: dict[str, float]) -> float:
    return add(*values.values())


def cover(
    lipschitz: float, num_weights: float, num_data: int, loss_range: float, penalty: float, epsilon: float
) -> float:
    r""":math:`2\varepsilon + M\sqrt{(W\ln(1+2B/\varepsilon)+\text{penalty})/(2n)}`, with B as log10."""
    entropy = num_weights * float(add(0.0, lipschitz + math.log10(2 / epsilon))) * LN10
    return 2 * epsilon + loss_range * math.sqrt((entropy + penalty) / (2 * num_data))


def cover_on_grid(lipschitz: float, num_weights: float, num_data: int, loss_range: float, delta: float) -> float:
    r"""The smallest :func:`cover` over :math:`\varepsilon = M2^{-j/4}`, j ≥ 0, with weights 1/((j+1)(j+2)) that pay for the choice."""
    return min(
        cover(
            lipschitz,
            num_weights,
            num_data,
            loss_range,
            math.log((j + 1) * (j + 2) / delta),
            loss_range * 2 ** (-j / 4),
        )
        for j in range(200)
    )


def _long(evidence: Evidence) -> BoundValue:
    tree, n, delta = tree_of(evidence), evidence.num_data, evidence.delta
    names = layer_names(tree)
    radius = log(evidence.number("input_norm", "max_l2"))
    num_weights, layers = sum(sizes(evidence, "num_weights").values()), evidence.number("structure", "depth")
    loss_range = evidence.bounded_range()
    scale = 1.0 if evidence.loss_lipschitz is None else evidence.lipschitz()

    def parts(side: str) -> tuple[float, float]:
        """Log10 of β, and νL + β."""
        beta = _layer_sum(spectral(evidence, side, "displacement"))
        excess = max(0.0, max(10.0**s for s in spectral(evidence, side, "init").values()) - 1)
        return beta, excess * layers + 10.0**beta

    def main(side: str) -> float:
        beta, exponent = parts(side)
        return log(loss_range) + radius + beta + exponent / LN10 + 0.5 * (log(num_weights) - log(n))

    beta, exponent = parts("upper")
    lipschitz = radius + log(scale) + beta + exponent / LN10
    confidence = math.log(1 / delta)

    def exponential() -> float:
        return log(loss_range) + 0.5 * -log(n) + add(lipschitz + 0.5 * log(num_weights), 0.5 * log(confidence))

    def square_root() -> float:
        if (radius + log(scale) + beta) * LN10 + 10.0**beta < math.log(5):
            raise NotAvailable("needs chi lambda beta exp(beta) >= 5")
        return log(loss_range) + 0.5 * (log(num_weights * lipschitz * LN10 + confidence) - log(n))

    def fast() -> float:
        inner = num_weights * (lipschitz + log(n)) * LN10
        if not inner > 0:
            raise NotAvailable("the logarithm's argument is below 1")
        return log(loss_range) + log(inner + confidence) - log(n)

    def minimum() -> float:
        found = []
        for function in (exponential, square_root, fast):
            try:
                found.append(float(function()))
            except NotAvailable:
                continue
        return min(found)

    def covering(constant: float) -> float:
        require(outside(evidence, "sums", "activations", "scales"))
        evidence.lipschitz()
        return log(cover_on_grid(constant, num_weights, n, loss_range, delta))

    def per_layer() -> float:
        moved, initial = spectral(evidence, "upper", "displacement"), spectral(evidence, "upper", "init")
        gains = compose(tree, {name: add(initial[name], moved[name]) for name in names}).gains
        return covering(radius + log(scale) + add(*(moved[name] + gains[name] for name in names)))

    def chaining() -> float:
        require(outside(evidence, "activations"))
        evidence.lipschitz()
        tail = loss_range * math.sqrt(confidence / (2 * n))
        return add(log(CHAINING) + lipschitz + 0.5 * (log(num_weights) - log(n)), log(tail))

    def plain_cover() -> float:
        require(outside(evidence, "activations"))
        return covering(lipschitz)

    def paper() -> float:
        raise NotAvailable("the paper leaves its constant unnamed: see cover and chaining (derived)")

    forms = {
        "paper": paper,
        "exponential": (exponential, CONSTANT_NOTE),
        "square_root": (square_root, CONSTANT_NOTE),
        "fast": (fast, f"{CONSTANT_NOTE}; adds to (1 + eta) times the training loss"),
        "minimum": (minimum, CONSTANT_NOTE),
        "chaining": chaining,
        "cover": plain_cover,
        "cover_per_layer": per_layer,
    }
    least = power(minimum())
    note = CONSTANT_NOTE + ("" if least is None else f"; the least of its three forms is {least:.3g}")
    return bound_value(main, forms, "; ".join(filter(None, [note, unverified(outside(evidence, "activations"))])))


LONG2020 = Bound(
    "long2020",
    "bound with the distance in operator norm and the number of parameters, exponential form",
    REFERENCE,
    ("structure", "spectral_norm", "layer_norms", "input_norm", "losses"),
    _long,
    has_structure,
)
