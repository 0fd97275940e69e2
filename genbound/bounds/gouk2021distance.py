r"""Distance-based Rademacher bound for fine-tuning (Gouk, Hospedales & Pontil, ICLR 2021).

With :math:`\|W\|_\infty` the largest row sum of :math:`|W|` (MARS norm; of a convolution's operator), classes
:math:`\|W_j\|_\infty\le B_j`, :math:`\|W_j-W_j^0\|_\infty\le D_j`, inputs of d coordinates of at most :math:`X_\infty`,
c outputs and a 1-Lipschitz loss in [0, 1], with probability :math:`1-\delta`

.. math::
   L - \hat L \le \frac{4\sqrt{\ln(2d)}\,c\,X_\infty}{\sqrt n}\sum_j\frac{D_j}{B_j}\prod_j2B_j
   + 3\sqrt{\frac{\ln(2/\delta)}{2n}}.

The pretrained weights lie in the class, so :math:`B_j = \max(\|W_j\|_\infty, \|W_j^0\|_\infty)`. The root of the
logarithm is right (Massart's lemma for the 2d functions ±x_i): public code has ln d, which for small d is even below
the truth.

``value`` is ``main_term``, the first summand, as comparisons of fine-tuning bounds print it. A loss with Lipschitz
constant κ and range C multiplies the summands by κ and C, which all other forms do.

Forms:
    main_term: the first summand; in sums of branches the gains of the norms 2B replace the products and every sum costs
        another factor 2 for the activation behind it.
    paper: both summands.
    constant_2: derived: half of the first summand (the last layer has no activation).
    asymmetric: derived: pretrained norms before the layer that moves, fine-tuned ones after it, no maximum.
    data_dependent: derived: the size that the pretrained network's own activations have on the data, in place of the
        product of norms before the layer that moves: :math:`2\sqrt2\,c\sum_jD_jN_{j-1}2^{L-j}\prod_{i>j}\|W_i\|_\infty`
        with :math:`N_{j-1} = \sqrt{2\ln(2\,\text{width}_{j-1})/n}\,\max_k\mathrm{rms}(h^0_{j-1,k})`.
    frobenius: the paper's second theorem,
        :math:`\frac{2\sqrt2\,c\,X_2}{\sqrt n}\prod_j(2\|W_j\|_F\sqrt{n_j})\sum_jD_j/(B_j\prod_{i\le j}\sqrt{n_i})` with
        Frobenius norms of the (unrolled) matrices, their numbers of columns n and X₂ the largest Euclidean norm of an
        input.

All are measures: the theorem holds for radii fixed before the data are seen, and X is a bound of the domain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.composition import compose, downstream, scales
from genbound.bounds.forms import Form, bound_value
from genbound.bounds.logs import TWO, add, log
from genbound.bounds.reading import has_biases, has_structure, norms, outside, require, sizes, tree_of, unverified

REFERENCE = "Gouk, Hospedales & Pontil 2021"
GAP = "derived with a contraction that differs between units, which may cost a factor of order sqrt(ln(width))"


@dataclass(frozen=True)
class Terms:
    r"""The numbers that the theorem is made of.

    Biases count as one more coordinate, of size 1, that passes from layer to layer.

    Attributes:
        tree: the structure.
        moved: layer -> log10 of :math:`\|W_j-W_j^0\|_\infty`.
        tuned: layer -> log10 of :math:`\|W_j\|_\infty`.
        initial: layer -> log10 of :math:`\|W_j^0\|_\infty`.
        classes: c.
        coordinates: d.
        peak: :math:`X_\infty`, in the unit of the inputs.
        num_data: n.
    """

    tree: Mapping[str, Any]
    moved: dict[str, float]
    tuned: dict[str, float]
    initial: dict[str, float]
    classes: float
    coordinates: float
    peak: float
    num_data: int

    @property
    def largest(self) -> dict[str, float]:
        r"""Layer -> log10 of :math:`B_j=\max(\|W_j\|_\infty,\|W_j^0\|_\infty)`."""
        return {name: max(self.tuned[name], self.initial[name]) for name in self.moved}

    @property
    def front(self) -> float:
        r"""Log10 of :math:`4\sqrt{\ln(2d)}\,c\,X_\infty/\sqrt n`."""
        factor = 4 * math.sqrt(math.log(2 * self.coordinates)) * self.classes
        return log(factor) + log(self.peak) - 0.5 * log(self.num_data)


def _doubled(norms: dict[str, float]) -> dict[str, float]:
    return {name: TWO + norm for name, norm in norms.items()}


def first_summand(terms: Terms, before: dict[str, float], after: dict[str, float]) -> float:
    r"""Log10 of :math:`\frac{4\sqrt{\ln(2d)}\,c\,X_\infty}{\sqrt n}\sum_j 2D_j\prod_{i<j}2B_i\prod_{i>j}2B'_i`.

    Args:
        terms: the theorem's numbers.
        before: layer -> log10 of B, for what is executed before the layer that moves.
        after: layer -> log10 of B', for what is executed after it.
    """
    gains = compose(terms.tree, _doubled(before), _doubled(after), per_sum=TWO).gains
    return terms.front + TWO + add(*(terms.moved[name] + gains[name] for name in terms.moved))


def data_dependent(terms: Terms, evidence: Evidence) -> float:
    r"""Log10 of :math:`2\sqrt2\,c\sum_jD_jN_{j-1}2^{L-j}\prod_{i>j}\|W_i\|_\infty`."""
    behind = downstream(terms.tree, _doubled(terms.tuned), per_sum=TWO)
    biased = has_biases(evidence)

    def activations(name: str) -> float:
        r"""Log10 of :math:`N_{j-1}=\sqrt{2\ln(2\,\mathrm{width})/n}\,\max_k\mathrm{rms}(h^0_k)`."""
        size, width = (evidence.number("init_activations", "layers", name, key) for key in ("value", "width"))
        if biased:
            size, width = max(size, 1.0), width + 1
        return log(size * math.sqrt(2 * math.log(2 * width) / terms.num_data))

    summands = (terms.moved[name] + behind[name] + activations(name) for name in terms.moved)
    return log(2 * math.sqrt(2) * terms.classes) + add(*summands)


def frobenius(terms: Terms, evidence: Evidence) -> float:
    """Log10 of the paper's second theorem without its confidence term, the form ``frobenius`` above."""
    weight, start, moved = (norms(evidence, "operator_frobenius", w) for w in ("weight", "init", "displacement"))
    doubled = {name: TWO + max(weight[name], start[name]) for name in weight}
    behind = {name: doubled[name] + 0.5 * log(columns) for name, columns in sizes(evidence, "input_size").items()}
    gains = compose(terms.tree, doubled, behind).gains
    inputs = log(evidence.number("input_norm", "max_l2"))
    front = log(2 * math.sqrt(2) * terms.classes) + inputs - 0.5 * log(terms.num_data)
    return front + TWO + add(*(moved[name] + gains[name] for name in moved))


def confidence(num_data: int, delta: float) -> float:
    r""":math:`3\sqrt{\ln(2/\delta)/(2n)}`."""
    return 3 * math.sqrt(math.log(2 / delta) / (2 * num_data))


# -- from the evidence ----------------------------------------------------------------------------------------------


def read(evidence: Evidence) -> Terms:
    """The theorem's numbers."""
    tree = tree_of(evidence)
    moved, tuned, initial = (norms(evidence, "mars_with_bias", which) for which in ("displacement", "weight", "init"))
    classes, coordinates = (evidence.number("input_norm", key) for key in ("output_dimension", "dimension"))
    peak = evidence.number("input_norm", "max_abs")
    if has_biases(evidence):
        # The appended coordinate passes through a row of norm 1 in every layer.
        coordinates, peak = coordinates + 1, max(peak, 1.0)
        tuned, initial = ({name: max(norm, 0.0) for name, norm in side.items()} for side in (tuned, initial))
    return Terms(tree, moved, tuned, initial, classes, coordinates, peak, evidence.num_data)


def _pooling(evidence: Evidence) -> str:
    """Max-pooling is not coordinatewise, so that the contraction step of the proof costs more than its factor 2."""
    structure = evidence.quantities["structure"]
    steps = [*structure.get("activations", ()), *structure.get("notes", ()), *scales(structure["tree"])]
    pooled = any("max" in step.lower() and "pool" in step.lower() for step in steps)
    return "the proof's contraction does not cover max-pooling, which is not coordinatewise" if pooled else ""


def _gouk(evidence: Evidence) -> BoundValue:
    terms = read(evidence)

    def published(side: str = "upper") -> float:
        return first_summand(terms, terms.largest, terms.largest)

    def with_confidence(term: Callable[[], float], factor: float, *covered: str) -> Callable[[], float]:
        """Both summands for the loss at hand, where the theorem covers the network."""

        def value() -> float:
            require(outside(evidence, "activations", *covered) or _pooling(evidence))
            tail = evidence.bounded_range() * confidence(evidence.num_data, evidence.delta)
            return add(log(factor * evidence.lipschitz()) + term(), log(tail))

        return value

    forms: dict[str, Form] = {
        "paper": with_confidence(published, 1.0, "biases"),
        "constant_2": (with_confidence(published, 0.5, "biases", "sums"), GAP),
        "asymmetric": (
            with_confidence(lambda: first_summand(terms, terms.initial, terms.tuned), 0.5, "biases", "sums"),
            GAP,
        ),
        "data_dependent": (with_confidence(lambda: data_dependent(terms, evidence), 1.0, "biases", "sums"), GAP),
        "frobenius": with_confidence(lambda: frobenius(terms, evidence), 1.0),
    }
    return bound_value(published, forms, unverified(outside(evidence, "biases", "activations") or _pooling(evidence)))


GOUK2021 = Bound(
    "gouk2021",
    "Rademacher bound with largest row sums of the displacement and the weights, leading term",
    REFERENCE,
    ("structure", "layer_norms", "input_norm", "init_activations", "losses"),
    _gouk,
    has_structure,
)
