r"""PAC-Bayes margin bound for convolutional networks (Pitas, Davies & Vandergheynst, 2017).

Noise lives on the kernels, whose Frobenius norms (not those of the unrolled matrices) enter the divergence:

.. math::
   L_0 \le \hat L_\gamma + O\!\left(\sqrt{\frac{B^2S^2\,\Phi + \ln(n/\delta)}{\gamma^2n}}\right),\qquad
   \Phi = \sum_i\|v_i\|_F^2\prod_{j\ne i}\|W_j\|_2^2,\qquad
   S = 42\sum_i k_i\left(\sqrt{a_i}+\sqrt{b_i}+\sqrt{2\ln(4n_i^2d)}\right),

with kernel side k, a input and b output channels and map side n (a dense layer: k = n = 1). Off square kernels and
maps, k² is the number of taps and n² that of positions, along one axis as along three. S follows from
:math:`\|\mathrm{op}(U_i)\| \le \sigma\sqrt2\,k(\sqrt a+\sqrt b+\sqrt{2\ln(4n^2d)})` and Neyshabur's step
:math:`e^2B\beta^{d-1}\sum_i\|U_i\| \le \gamma/4`: :math:`1/\sigma = 4e^2\sqrt2\ldots`, 41.8 rounded up to 42, which is
84 √c for a = b = c.

``value`` is ``main_term``, :math:`\sqrt{B^2S^2\Phi/(\gamma^2n)}`, the leading term as comparisons of fine-tuning bounds
print it.

Forms:
    main_term: as above.
    consistent: with :math:`\ln(n/\delta)` under the root, constant 1 in place of O.
    literal: the bracket as other papers quote it, :math:`84B\sum_ik_i\sqrt{c_i} + \sqrt{\ln(4n^2d)}` with the output
        channels c and the side n of the network's input. It is not homogeneous in B, so it can hardly be what was
        meant.
    explicit: Neyshabur's :math:`4\sqrt{(\mathrm{KL}+\ln(6nG/\delta))/(n-1)}` with
        :math:`\mathrm{KL} = S^2B^2\Phi/(2\gamma^2)`; the balanced layers of that proof need a prior at zero, so this is
        no theorem either.
    rigorous: derived for this package: :func:`genbound.bounds.gaussian_noise.margin_stable_bound` with the proven noise
        norm for every layer.
    paper: not available: the theorem's text could not be read.

All are measures. B is the norm of the whole input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.composition import compose, layer_names
from genbound.bounds.forms import Form, absent, bound_value
from genbound.bounds.gaussian_noise import margin_stable_bound
from genbound.bounds.logs import add, log
from genbound.bounds.neyshabur2018pacbayes import CONSTANT, NO_THEOREM, grid_size, margin_bound, weighted_squares
from genbound.bounds.reading import depth, has_margin, norms, outside, require, sizes, spectral, tree_of, unverified

REFERENCE = "Pitas, Davies & Vandergheynst 2017"
QUOTED = "as quoted by other papers; not homogeneous in B"


@dataclass(frozen=True)
class Terms:
    r"""The numbers that the theorem is made of.

    Attributes:
        phi: ``lower`` or ``upper`` -> log10 of Φ.
        shapes: (k, a, b, n) of every layer, k and n the roots of the numbers of taps and of positions.
        layers: d.
        radius: B, in the unit of the inputs.
        margin: log10 of γ.
        num_data: n.
        delta: δ.
    """

    phi: dict[str, float]
    shapes: list[tuple[float, float, float, float]]
    layers: int
    radius: float
    margin: float
    num_data: int
    delta: float

    @property
    def noise(self) -> float:
        """Log10 of BS."""
        return log(self.radius) + log(consistent_sum(self.shapes, self.layers))


def consistent_sum(shapes: list[tuple[float, float, float, float]], layers: int) -> float:
    r""":math:`42\sum_i k_i(\sqrt{a_i}+\sqrt{b_i}+\sqrt{2\ln(4n_i^2d)})` over (k, a, b, n) of every layer.

    Example:
        >>> round(consistent_sum([(3, 1, 1, 4)], 1), 3)
        615.391
    """
    return CONSTANT * sum(
        k * (math.sqrt(a) + math.sqrt(b) + math.sqrt(2 * math.log(4 * n**2 * layers))) for k, a, b, n in shapes
    )


def literal_sum(shapes: list[tuple[float, float]], resolution: float, layers: int, radius: float = 1.0) -> float:
    r""":math:`84B\sum_ik_i\sqrt{c_i}+\sqrt{\ln(4n^2d)}` over (k, c) of every layer.

    Example:
        >>> round(literal_sum([(3, 1)], 4, 1), 3)
        254.039
    """
    return 84 * radius * sum(k * math.sqrt(c) for k, c in shapes) + math.sqrt(math.log(4 * resolution**2 * layers))


def main_term(terms: Terms, side: str) -> float:
    r"""Log10 of :math:`\sqrt{B^2S^2\Phi/(\gamma^2n)}`."""
    return terms.noise - terms.margin + 0.5 * (terms.phi[side] - log(terms.num_data))


def with_confidence(terms: Terms, bracket: float) -> float:
    r"""Log10 of :math:`\sqrt{(b^2\Phi+\ln(n/\delta))/(\gamma^2n)}` with log10 of the bracket b = BS."""
    confidence = log(math.log(terms.num_data / terms.delta))
    return 0.5 * (add(2 * bracket + terms.phi["upper"], confidence) - log(terms.num_data)) - terms.margin


def literal(terms: Terms, resolution: float) -> float:
    """Log10 of :func:`with_confidence` with :func:`literal_sum` for the bracket; ``resolution`` is the input's side."""
    shapes = [(side, outputs) for side, _, outputs, _ in terms.shapes]
    return with_confidence(terms, log(literal_sum(shapes, resolution, terms.layers, terms.radius)))


def explicit(terms: Terms) -> float:
    r"""Log10 of :math:`4\sqrt{(\mathrm{KL}+\ln(6nG/\delta))/(n-1)}`, :math:`\mathrm{KL}=S^2B^2\Phi/(2\gamma^2)`."""
    kl = 2 * (terms.noise - terms.margin) + terms.phi["upper"] - log(2.0)
    return margin_bound(kl, terms.num_data, terms.delta, grid_size(terms.layers, terms.num_data))


# -- from the evidence ----------------------------------------------------------------------------------------------


def read(evidence: Evidence) -> Terms:
    """The theorem's numbers."""
    tree, moved = tree_of(evidence), norms(evidence, "frobenius", "displacement")
    taps, inputs, outputs, positions = (
        sizes(evidence, key) for key in ("kernel_taps", "in_channels", "out_channels", "input_positions")
    )
    return Terms(
        layers=depth(evidence),
        radius=evidence.number("input_norm", "max_l2"),
        margin=log(evidence.number("margin", "value")),
        shapes=[
            (math.sqrt(taps[name]), inputs[name], outputs[name], math.sqrt(positions[name]))
            for name in layer_names(tree)
        ],
        phi={
            which: weighted_squares(moved, compose(tree, spectral(evidence, which)).gains)
            for which in ("lower", "upper")
        },
        num_data=evidence.num_data,
        delta=evidence.delta,
    )


def _pitas(evidence: Evidence) -> BoundValue:
    terms, doubt = read(evidence), unverified(outside(evidence))

    def neyshabur() -> float:
        require(outside(evidence))
        return explicit(terms)

    def rigorous() -> float:
        tolerance, moved = terms.margin - log(2 * math.sqrt(2)), norms(evidence, "frobenius", "displacement")
        return margin_stable_bound(evidence, tolerance, moved, dense=False)

    forms: dict[str, Form] = {
        "paper": absent("the theorem's text could not be read: see consistent (derived) and literal (as quoted)"),
        "consistent": (lambda: with_confidence(terms, terms.noise), doubt),
        "literal": (
            lambda: literal(terms, evidence.number("input_norm", "resolution")),
            "; ".join(filter(None, [QUOTED, doubt])),
        ),
        "explicit": (neyshabur, NO_THEOREM),
        "rigorous": rigorous,
    }
    note = doubt or "the paper's own constants could not be verified"
    return bound_value(lambda side: main_term(terms, side), forms, note, evidence.number("margin", "margin_loss"))


PITAS2017 = Bound(
    "pitas2017",
    "PAC-Bayes margin bound with noise on convolution kernels, leading term",
    REFERENCE,
    ("structure", "spectral_norm", "layer_norms", "input_norm", "margin", "losses"),
    _pitas,
    has_margin,
    bounds="error",
)
