r"""PAC-Bayes spectrally-normalised margin bound (Neyshabur, Bhojanapalli & Srebro, ICLR 2018).

With probability :math:`1-\delta`, for a plain ReLU network of depth d and width at most h on inputs of norm at most B,

.. math::
   L_0(f_W) \le \hat L_\gamma(f_W) + 4\sqrt{\frac{\mathrm{KL} + \ln(6nG/\delta)}{n-1}},\qquad
   \mathrm{KL} = \frac{42^2 d^2B^2 h\ln(4hd)}{2\gamma^2}\,\Phi,\qquad
   \Phi = \sum_i \|W_i\|_F^2 \prod_{j\ne i}\|W_j\|_2^2,

with :math:`G = d\,n^{1/(2d)}` points of a grid for :math:`\beta = (\prod_i\|W_i\|_2)^{1/d}`; the grid point is taken
equal to β (another point of the same cell changes KL by a factor between e⁻² and e²). Where the constants come from is
in docs/bounds.

``value`` is ``main_term``, the leading term with the displacement in place of the weights and without constants, as
comparisons of fine-tuning bounds print it: :math:`\sqrt{B^2d^2h\ln(dh)\,\Phi_v/(\gamma^2n)}` with :math:`\|v_i\|_F` in
Φ. It is not a bound: the balanced layers of the proof need the prior at zero.

Forms:
    main_term: as above, matrices unrolled (a convolution is the dense matrix of its operator, h the largest layer).
    main_term_kernel: with the kernels' norms and h the largest number of channels, as public code has it.
    main_term_origin: ``main_term`` with :math:`\|W_i\|_F`: prior at zero.
    paper: the theorem, prior at zero.
    paper_at_init: the same constants with the displacement: what a prior at the pretrained weights would give if the
        theorem allowed it.
    residual: ``paper`` for networks with sums of branches, with gains in place of products (for blocks x + Wx: every
        norm plus one, as Xiao et al. 2023 restate it).
    init_rigorous: derived for this package: prior at the pretrained weights, noise scaled by the *pretrained* norms,
        one grid (:func:`genbound.bounds.gaussian_noise.margin_stable_bound`, tolerance :math:`\gamma/(2\sqrt2)` in
        Euclidean norm).

All are measures: B is the largest norm seen where the theorem wants one of the domain, and γ is chosen after seeing the
data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.composition import compose
from genbound.bounds.forms import Form, bound_value
from genbound.bounds.gaussian_noise import margin_stable_bound
from genbound.bounds.logs import add, log
from genbound.bounds.reading import (
    depth,
    has_margin,
    norms,
    outside,
    require,
    sizes,
    spectral,
    tree_of,
    unverified,
    widest,
)

REFERENCE = "Neyshabur, Bhojanapalli & Srebro 2018"
CONSTANT = 42.0  # 4 e^2 sqrt(2) = 41.8, rounded up
BALANCING = "balancing the layers across sums of branches could not be verified"
NO_THEOREM = "not a theorem: the layers' balancing needs the prior at zero"


@dataclass(frozen=True)
class Terms:
    r"""The numbers that the theorem is made of, besides the Frobenius norms.

    Attributes:
        gains: ``lower`` or ``upper`` -> layer -> log10 of :math:`T_i`, in a plain network
            :math:`\prod_{j\ne i}\|W_j\|_2`.
        radius: log10 of B.
        margin: log10 of γ.
        layers: d.
        width: h.
        num_data: n.
    """

    gains: dict[str, dict[str, float]]
    radius: float
    margin: float
    layers: int
    width: float
    num_data: int


def weighted_squares(frobenius: dict[str, float], gains: dict[str, float]) -> float:
    r"""Log10 of :math:`\Phi = \sum_i \|W_i\|_F^2 T_i^2`."""
    return add(*(2 * (frobenius[name] + gains[name]) for name in frobenius))


def main_term(terms: Terms, phi: float, width: float) -> float:
    r"""Log10 of :math:`\sqrt{B^2d^2h\ln(dh)\Phi/(\gamma^2n)}`; Φ as logarithm."""
    spread = log(width * math.log(terms.layers * width))
    return terms.radius + log(terms.layers) - terms.margin + 0.5 * (phi + spread - log(terms.num_data))


def divergence(terms: Terms, phi: float) -> float:
    r"""Log10 of :math:`\mathrm{KL} = 42^2d^2B^2h\ln(4hd)\Phi/(2\gamma^2)`; Φ as logarithm."""
    spread = log(terms.width * math.log(4 * terms.layers * terms.width) / 2)
    return 2 * (log(CONSTANT) + log(terms.layers) + terms.radius - terms.margin) + spread + phi


def margin_bound(kl: float, num_data: int, delta: float, grid: float = 1.0) -> float:
    r"""Log10 of :math:`4\sqrt{(\mathrm{KL}+\ln(6nG/\delta))/(n-1)}`; KL as logarithm."""
    return log(4.0) + 0.5 * (add(kl, log(math.log(6 * num_data * grid / delta))) - log(num_data - 1))


def grid_size(layers: int, num_data: int) -> float:
    r"""Size of a grid on :math:`[(\gamma/2B)^{1/d}, (\gamma\sqrt n/2B)^{1/d}]`: at most :math:`d\,n^{1/(2d)}`.

    Its points lie within 1/d of the interval's lower end of each other.
    """
    return layers * num_data ** (1 / (2 * layers))


# -- from the evidence ----------------------------------------------------------------------------------------------


def read(evidence: Evidence) -> Terms:
    """The theorem's numbers."""
    tree = tree_of(evidence)
    return Terms(
        layers=depth(evidence),
        radius=log(evidence.number("input_norm", "max_l2")),
        margin=log(evidence.number("margin", "value")),
        width=widest(evidence),
        gains={side: compose(tree, spectral(evidence, side)).gains for side in ("lower", "upper")},
        num_data=evidence.num_data,
    )


def _neyshabur(evidence: Evidence) -> BoundValue:
    terms = read(evidence)
    moved, weights = (norms(evidence, "operator_frobenius", which) for which in ("displacement", "weight"))

    def leading(frobenius: dict[str, float], width: float, side: str = "upper") -> float:
        return main_term(terms, weighted_squares(frobenius, terms.gains[side]), width)

    def kernel() -> float:
        channels = max(*sizes(evidence, "in_channels").values(), *sizes(evidence, "out_channels").values())
        return leading(norms(evidence, "frobenius", "displacement"), channels)

    def theorem(frobenius: dict[str, float], *covered: str) -> float:
        require(outside(evidence, *covered))
        kl = divergence(terms, weighted_squares(frobenius, terms.gains["upper"]))
        return margin_bound(kl, terms.num_data, evidence.delta, grid_size(terms.layers, terms.num_data))

    def rigorous() -> float:
        tolerance = terms.margin - log(2 * math.sqrt(2))
        return margin_stable_bound(evidence, tolerance, norms(evidence, "frobenius", "displacement"))

    forms: dict[str, Form] = {
        "main_term_kernel": kernel,
        "main_term_origin": lambda: leading(weights, terms.width),
        "paper": lambda: theorem(weights),
        "paper_at_init": (lambda: theorem(moved), NO_THEOREM),
        "init_rigorous": rigorous,
    }
    if not evidence.quantities["structure"]["plain"]:
        forms["residual"] = (lambda: theorem(weights, "sums"), BALANCING)
    note = unverified(outside(evidence))
    return bound_value(
        lambda side: leading(moved, terms.width, side), forms, note, evidence.number("margin", "margin_loss")
    )


NEYSHABUR2018 = Bound(
    "neyshabur2018",
    "PAC-Bayes margin bound with spectral norms and the displacement's Frobenius norms, leading term",
    REFERENCE,
    ("structure", "spectral_norm", "layer_norms", "input_norm", "margin", "losses"),
    _neyshabur,
    has_margin,
    bounds="error",
)
