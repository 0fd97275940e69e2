r"""Size-free bounds for convolutional networks near their initialisation (Long & Sedghi, ICLR 2020).

For W parameters, inputs of norm at most χ, a λ-Lipschitz loss in [0, M], L layers with pretrained operator norms at
most 1 + ν and :math:`\beta = \sum_i\|\mathrm{op}(K_i)-\mathrm{op}(K_i^0)\|_2`, the network is Lipschitz in its
parameters with constant :math:`B_L = \chi\lambda\beta e^{\nu L+\beta}`. The paper's three forms have an unnamed
constant, taken as 1 here:

.. math::
   \texttt{exponential} &= M\left(B_L\sqrt{W/n} + \sqrt{\ln(1/\delta)/n}\right)\\
   \texttt{square\_root} &= M\sqrt{(W(\beta+\nu L+\ln(\chi\lambda\beta)) + \ln(1/\delta))/n}
      \quad\text{if } \chi\lambda\beta e^\beta\ge5\\
   \texttt{fast} &= M(W(\beta+\nu L+\ln(\chi\lambda\beta n)) + \ln(1/\delta))/n
      \quad\text{(adds to }(1+\eta)\hat L\text{)}

``value`` is ``main_term``, the first summand of ``exponential`` with λ = 1: the form that published comparisons print
(the numbers there are of its size). ``minimum`` is the smallest of the three. Because of the unnamed constant there is
no ``paper`` form.

Derived for this package (docs/bounds), with all constants:

* ``chaining``: :math:`32.47\,B_L\sqrt{W/n} + M\sqrt{\ln(1/\delta)/(2n)}`;
* ``cover``: :math:`\min_\varepsilon 2\varepsilon + M\sqrt{(W\ln(1+2B_L/\varepsilon)+\ln(1/(\delta
  p_\varepsilon)))/(2n)}`, ε on a fixed grid with weights p: B_L stands inside the logarithm only;
* ``cover_per_layer``: the same with :math:`\chi\lambda\sum_i\beta_i\prod_{j\ne i}(\|\mathrm{op}K_j^0\|+\beta_j)` in
  place of B_L (sums of branches through the gains), far smaller for pretrained networks, whose norms exceed 1 by much.

All are measures: the theorem holds for a β fixed before the data are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable
from genbound.bounds.composition import compose
from genbound.bounds.forms import Form, absent, bound_value
from genbound.bounds.logs import LN10, add, log, power
from genbound.bounds.reading import depth, has_structure, outside, require, sizes, spectral, tree_of, unverified

REFERENCE = "Long & Sedghi 2020"
CHAINING = 32.47  # 24 times the integral of sqrt(ln(1 + 2/u)) over [0, 1], 1.352581, rounded up
CONSTANT_NOTE = "the paper's constant is unnamed, taken as 1"


@dataclass(frozen=True)
class Terms:
    r"""The numbers that the theorem is made of.

    Attributes:
        beta: log10 of β.
        exponent: :math:`\nu L+\beta`.
        inputs: log10 of χ.
        scale: log10 of λ.
        num_weights: W.
        num_data: n.
        loss_range: M, in the unit of the loss.
        delta: δ.
    """

    beta: float
    exponent: float
    inputs: float
    scale: float
    num_weights: float
    num_data: int
    loss_range: float
    delta: float

    @property
    def lipschitz(self) -> float:
        r"""Log10 of :math:`B_L = \chi\lambda\beta e^{\nu L+\beta}`."""
        return self.inputs + self.scale + self.beta + self.exponent / LN10

    @property
    def confidence(self) -> float:
        r""":math:`\ln(1/\delta)`."""
        return math.log(1 / self.delta)

    @property
    def weights_per_sample(self) -> float:
        r"""Log10 of :math:`\sqrt{W/n}`."""
        return 0.5 * (log(self.num_weights) - log(self.num_data))


# -- the published forms, constant 1 --------------------------------------------------------------------------------


def main_term(terms: Terms) -> float:
    r"""Log10 of :math:`M\chi\beta e^{\nu L+\beta}\sqrt{W/n}`."""
    return log(terms.loss_range) + terms.inputs + terms.beta + terms.exponent / LN10 + terms.weights_per_sample


def exponential(terms: Terms) -> float:
    r"""Log10 of :math:`M(B_L\sqrt{W/n}+\sqrt{\ln(1/\delta)/n})`."""
    roots = add(terms.lipschitz + 0.5 * log(terms.num_weights), 0.5 * log(terms.confidence))
    return log(terms.loss_range) + 0.5 * -log(terms.num_data) + roots


def square_root(terms: Terms) -> float:
    r"""Log10 of :math:`M\sqrt{(W\ln B_L+\ln(1/\delta))/n}`, a bound where :math:`\chi\lambda\beta e^\beta\ge5`."""
    if (terms.inputs + terms.scale + terms.beta) * LN10 + 10.0**terms.beta < math.log(5):
        raise NotAvailable("needs chi lambda beta exp(beta) >= 5")
    entropy = terms.num_weights * terms.lipschitz * LN10
    return log(terms.loss_range) + 0.5 * (log(entropy + terms.confidence) - log(terms.num_data))


def fast(terms: Terms) -> float:
    r"""Log10 of :math:`M(W\ln(B_Ln)+\ln(1/\delta))/n`."""
    entropy = terms.num_weights * (terms.lipschitz + log(terms.num_data)) * LN10
    if not entropy > 0:
        raise NotAvailable("the logarithm's argument is below 1")
    return log(terms.loss_range) + log(entropy + terms.confidence) - log(terms.num_data)


def minimum(terms: Terms) -> float:
    """Log10 of the smallest of the three; the first always exists."""
    found = [exponential(terms)]
    for function in (square_root, fast):
        try:
            found.append(function(terms))
        except NotAvailable:
            continue
    return float(min(found))


# -- derived, with all constants ------------------------------------------------------------------------------------


def chaining(terms: Terms) -> float:
    r"""Log10 of :math:`32.47\,B_L\sqrt{W/n}+M\sqrt{\ln(1/\delta)/(2n)}`."""
    tail = terms.loss_range * math.sqrt(terms.confidence / (2 * terms.num_data))
    return add(log(CHAINING) + terms.lipschitz + terms.weights_per_sample, log(tail))


def cover(
    lipschitz: float, num_weights: float, num_data: int, loss_range: float, penalty: float, epsilon: float
) -> float:
    r""":math:`2\varepsilon + M\sqrt{(W\ln(1+2B/\varepsilon)+\text{penalty})/(2n)}`, with B as log10."""
    entropy = num_weights * float(add(0.0, lipschitz + math.log10(2 / epsilon))) * LN10
    return 2 * epsilon + loss_range * math.sqrt((entropy + penalty) / (2 * num_data))


def cover_on_grid(terms: Terms, lipschitz: float) -> float:
    r"""Log10 of the smallest :func:`cover` over :math:`\varepsilon = M2^{-j/4}`, j ≥ 0.

    Args:
        terms: the theorem's numbers.
        lipschitz: log10 of the network's Lipschitz constant B in its parameters.
    """

    def at(j: int) -> float:
        # Weights 1/((j+1)(j+2)), which add up to 1, pay for the choice of j.
        penalty = math.log((j + 1) * (j + 2) / terms.delta)
        epsilon = terms.loss_range * 2 ** (-j / 4)
        return cover(lipschitz, terms.num_weights, terms.num_data, terms.loss_range, penalty, epsilon)

    return log(min(at(j) for j in range(200)))


# -- from the evidence ----------------------------------------------------------------------------------------------


def read(evidence: Evidence, side: str) -> Terms:
    """The theorem's numbers from the ``lower`` or the ``upper`` operator norms."""
    beta = add(*spectral(evidence, side, "displacement").values())
    nu = max(0.0, max(10.0**s for s in spectral(evidence, side, "init").values()) - 1)
    return Terms(
        beta=beta,
        exponent=nu * depth(evidence) + 10.0**beta,
        inputs=log(evidence.number("input_norm", "max_l2")),
        scale=0.0 if evidence.loss_lipschitz is None else log(evidence.lipschitz()),
        num_weights=sum(sizes(evidence, "num_weights").values()),
        num_data=evidence.num_data,
        loss_range=evidence.bounded_range(),
        delta=evidence.delta,
    )


def lipschitz_per_layer(evidence: Evidence, terms: Terms) -> float:
    r"""Log10 of :math:`\chi\lambda\sum_i\beta_i\prod_{j\ne i}(\|\mathrm{op}K_j^0\|+\beta_j)`, from the gains."""
    moved, initial = spectral(evidence, "upper", "displacement"), spectral(evidence, "upper", "init")
    gains = compose(tree_of(evidence), {name: add(initial[name], moved[name]) for name in moved}).gains
    return terms.inputs + terms.scale + add(*(moved[name] + gains[name] for name in moved))


def _long(evidence: Evidence) -> BoundValue:
    sides = {side: read(evidence, side) for side in ("upper", "lower")}
    terms = sides["upper"]

    def derived(form: Callable[[], float], *covered: str) -> Callable[[], float]:
        def value() -> float:
            require(outside(evidence, *covered))
            evidence.lipschitz()
            return form()

        return value

    forms: dict[str, Form] = {
        "paper": absent("the paper leaves its constant unnamed: see cover and chaining (derived)"),
        "exponential": (lambda: exponential(terms), CONSTANT_NOTE),
        "square_root": (lambda: square_root(terms), CONSTANT_NOTE),
        "fast": (lambda: fast(terms), f"{CONSTANT_NOTE}; adds to (1 + eta) times the training loss"),
        "minimum": (lambda: minimum(terms), CONSTANT_NOTE),
        "chaining": derived(lambda: chaining(terms), "activations"),
        "cover": derived(lambda: cover_on_grid(terms, terms.lipschitz), "activations"),
        "cover_per_layer": derived(
            lambda: cover_on_grid(terms, lipschitz_per_layer(evidence, terms)), "sums", "activations", "scales"
        ),
    }
    least = power(minimum(terms))
    doubts = [
        CONSTANT_NOTE,
        "" if least is None else f"the least of its three forms is {least:.3g}",
        unverified(outside(evidence, "activations")),
    ]
    return bound_value(lambda side: main_term(sides[side]), forms, "; ".join(filter(None, doubts)))


LONG2020 = Bound(
    "long2020",
    "bound with the distance in operator norm and the number of parameters, exponential form",
    REFERENCE,
    ("structure", "spectral_norm", "layer_norms", "input_norm", "losses"),
    _long,
    has_structure,
    range_power=1.0,
)
