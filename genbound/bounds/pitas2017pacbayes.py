r"""PAC-Bayes margin bound for convolutional networks (Pitas, Davies & Vandergheynst, 2017).

Noise lives on the kernels, whose Frobenius norms (not those of the unrolled matrices) enter the divergence:

.. math::
   L_0 \le \hat L_\gamma + O\!\left(\sqrt{\frac{B^2S^2\,\Phi + \ln(n/\delta)}{\gamma^2n}}\right),\qquad
   \Phi = \sum_i\|v_i\|_F^2\prod_{j\ne i}\|W_j\|_2^2,\qquad S = 42\sum_i k_i\left(\sqrt{a_i}+\sqrt{b_i}+\sqrt{2\ln(4n_i^2d)}\right),

with kernel side k, a input and b output channels and map side n (a dense layer: k = n = 1). S follows from
:math:`\|\mathrm{op}(U_i)\| \le \sigma\sqrt2\,k(\sqrt a+\sqrt b+\sqrt{2\ln(4n^2d)})` and Neyshabur's step :math:`e^2B\beta^{d-1}\sum_i\|U_i\| \le
\gamma/4`: :math:`1/\sigma = 4e^2\sqrt2\ldots`, 41.8 rounded up to 42, which is 84 √c for a = b = c.

``value`` is ``main_term``, :math:`\sqrt{B^2S^2\Phi/(\gamma^2n)}`, the leading term as comparisons of fine-tuning bounds print it.

Forms:
    main_term: as above.
    consistent: with :math:`\ln(n/\delta)` under the root, constant 1 in place of O.
    literal: the bracket as other papers quote it, :math:`84B\sum_ik_i\sqrt{c_i} + \sqrt{\ln(4n^2d)}` with the output channels c and the side n
        of the network's input. It is not homogeneous in B, so it can hardly be what was meant.
    explicit: Neyshabur's :math:`4\sqrt{(\mathrm{KL}+\ln(6nG/\delta))/(n-1)}` with :math:`\mathrm{KL} = S^2B^2\Phi/(2\gamma^2)`; the balanced layers of that
        proof need a prior at zero, so this is no theorem either.
    rigorous: derived for this package: :func:`genbound.bounds.gaussian_noise.margin_stable_bound` with the proven noise norm for every layer.
    paper: not available: the theorem's text could not be read.

All are measures. B is the norm of the whole input.
"""

from __future__ import annotations

import math

from genbound.bounds.base import Bound, BoundValue, Evidence, NotAvailable
from genbound.bounds.composition import compose, layer_names
from genbound.bounds.forms import bound_value
from genbound.bounds.gaussian_noise import margin_stable_bound
from genbound.bounds.logs import add, log
from genbound.bounds.neyshabur2018pacbayes import CONSTANT, grid_size, margin_bound, weighted_squares
from genbound.bounds.reading import depth, has_margin, norms, outside, require, sizes, spectral, tree_of, unverified

REFERENCE = "Pitas, Davies & Vandergheynst 2017"


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


def _pitas(evidence: Evidence) -> BoundValue:
    tree, layers, n = tree_of(evidence), depth(evidence), evidence.num_data
    names, radius = layer_names(tree), log(evidence.number("input_norm", "max_l2"))
    margin, moved = log(evidence.number("margin", "value")), norms(evidence, "frobenius", "displacement")
    size = {key: sizes(evidence, key) for key in ("kernel_side", "in_channels", "out_channels", "input_resolution")}
    spread = log(consistent_sum([tuple(size[key][name] for key in size) for name in names], layers))
    phi = {side: weighted_squares(moved, compose(tree, spectral(evidence, side)).gains) for side in ("lower", "upper")}
    confidence = log(math.log(n / evidence.delta))

    def main(side: str) -> float:
        return radius + spread - margin + 0.5 * (phi[side] - log(n))

    def consistent() -> float:
        return 0.5 * (add(2 * (radius + spread) + phi["upper"], confidence) - log(n)) - margin

    def literal() -> float:
        resolution = evidence.number("input_norm", "resolution")
        shapes = [(size["kernel_side"][name], size["out_channels"][name]) for name in names]
        bracket = log(literal_sum(shapes, resolution, layers, evidence.number("input_norm", "max_l2")))
        return 0.5 * (add(2 * bracket + phi["upper"], confidence) - log(n)) - margin

    def explicit() -> float:
        require(outside(evidence))
        kl = 2 * (radius + spread - margin) + phi["upper"] - log(2.0)
        return margin_bound(kl, n, evidence.delta, grid_size(layers, n))

    def paper() -> float:
        raise NotAvailable("the theorem's text could not be read: see consistent (derived) and literal (as quoted)")

    doubt = unverified(outside(evidence))
    forms = {
        "paper": paper,
        "consistent": (consistent, doubt),
        "literal": (literal, "; ".join(filter(None, ["as quoted by other papers; not homogeneous in B", doubt]))),
        "explicit": (explicit, "not a theorem: the layers' balancing needs the prior at zero"),
        "rigorous": lambda: margin_stable_bound(evidence, margin - log(2 * math.sqrt(2)), moved, dense=False),
    }
    note = doubt or "the paper's own constants could not be verified"
    return bound_value(main, forms, note, evidence.number("margin", "margin_loss"))


PITAS2017 = Bound(
    "pitas2017",
    "PAC-Bayes margin bound with noise on convolution kernels, leading term",
    REFERENCE,
    ("structure", "spectral_norm", "layer_norms", "input_norm", "margin", "losses"),
    _pitas,
    has_margin,
    bounds="error",
)
