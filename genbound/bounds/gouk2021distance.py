r"""Distance-based Rademacher bound for fine-tuning (Gouk, Hospedales & Pontil, ICLR 2021).

With :math:`\|W\|_\infty` the largest row sum of :math:`|W|` (MARS norm; of a convolution's operator), classes
:math:`\|W_j\|_\infty\le B_j`, :math:`\|W_j-W_j^0\|_\infty\le D_j`, inputs of d coordinates of at most :math:`X_\infty`, c outputs and a 1-Lipschitz
loss in [0, 1], with probability :math:`1-\delta`

.. math::
   L - \hat L \le \frac{4\sqrt{\ln(2d)}\,c\,X_\infty}{\sqrt n}\sum_j\frac{D_j}{B_j}\prod_j2B_j + 3\sqrt{\frac{\ln(2/\delta)}{2n}}.

The pretrained weights lie in the class, so :math:`B_j = \max(\|W_j\|_\infty, \|W_j^0\|_\infty)`. The root of the logarithm is right (Massart's
lemma for the 2d functions ±x_i): public code has ln d, which for small d is even below the truth.

``value`` is ``main_term``, the first summand, as comparisons of fine-tuning bounds print it. A loss with Lipschitz constant κ and range C
multiplies the summands by κ and C, which all other forms do.

Forms:
    main_term: the first summand; in sums of branches the gains of the norms 2B replace the products and every sum costs another factor 2
        for the activation behind it.
    paper: both summands.
    constant_2: derived: half of the first summand (the last layer has no activation).
    asymmetric: derived: pretrained norms before the layer that moves, fine-tuned ones after it, no maximum.
    data_dependent: derived: the size that the pretrained network's own activations have on the data, in place of the product of norms before
        the layer that moves: :math:`2\sqrt2\,c\sum_jD_jN_{j-1}2^{L-j}\prod_{i>j}\|W_i\|_\infty` with
        :math:`N_{j-1} = \sqrt{2\ln(2\,\text{width}_{j-1})/n}\,\max_k\mathrm{rms}(h^0_{j-1,k})`.
    frobenius: the paper's second theorem, :math:`\frac{2\sqrt2\,c\,X_2}{\sqrt n}\prod_j(2\|W_j\|_F\sqrt{n_j})\sum_jD_j/(B_j\prod_{i\le j}\sqrt{n_i})` with
        Frobenius norms of the (unrolled) matrices, their numbers of columns n and X₂ the largest Euclidean norm of an input.

All are measures: the theorem holds for radii fixed before the data are seen, and X is a bound of the domain.
"""

from __future__ import annotations

import math

from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.composition import compose, downstream, layer_names, scales
from genbound.bounds.forms import bound_value
from genbound.bounds.logs import add, log
from genbound.bounds.reading import has_biases, has_structure, norms, outside, require, sizes, tree_of, unverified

REFERENCE = "Gouk, Hospedales & Pontil 2021"
TWO = math.log10(2.0)
GAP = "derived with a contraction that differs between units, which may cost a factor of order sqrt(ln(width))"


def confidence(num_data: int, delta: float) -> float:
    r""":math:`3\sqrt{\ln(2/\delta)/(2n)}`."""
    return 3 * math.sqrt(math.log(2 / delta) / (2 * num_data))


def _pooling(evidence: Evidence) -> str:
    """Max-pooling is not coordinatewise, so that the contraction step of the proof costs more than its factor 2."""
    structure = evidence.quantities["structure"]
    steps = [*structure.get("activations", ()), *structure.get("notes", ()), *scales(structure["tree"])]
    pooled = any("max" in step.lower() and "pool" in step.lower() for step in steps)
    return "the proof's contraction does not cover max-pooling, which is not coordinatewise" if pooled else ""


def _gouk(evidence: Evidence) -> BoundValue:
    tree, n = tree_of(evidence), evidence.num_data
    names = layer_names(tree)
    biased = "mars_with_bias"
    moved = norms(evidence, biased, "displacement")
    tuned, initial = norms(evidence, biased, "weight"), norms(evidence, biased, "init")
    classes, coordinates = sizes(evidence, "output_size")[names[-1]], evidence.number("input_norm", "dimension")
    peak = evidence.number("input_norm", "max_abs")
    if has_biases(evidence):
        # An appended coordinate of 1 carries them from layer to layer: one more input, and rows of norm 1.
        coordinates, peak = coordinates + 1, max(peak, 1.0)
        tuned, initial = ({name: max(s, 0.0) for name, s in side.items()} for side in (tuned, initial))
    largest = {name: max(tuned[name], initial[name]) for name in names}
    scale = log(4 * math.sqrt(math.log(2 * coordinates)) * classes) + log(peak) - 0.5 * log(n)

    def first(before: dict[str, float], after: dict[str, float]) -> float:
        """The first summand: the layer that moves has its own factor 2."""
        gains = compose(
            tree,
            {name: TWO + before[name] for name in names},
            {name: TWO + after[name] for name in names},
            per_sum=TWO,
        ).gains
        return scale + TWO + add(*(moved[name] + gains[name] for name in names))

    def data_dependent() -> float:
        after = downstream(tree, {name: TWO + tuned[name] for name in names}, per_sum=TWO)
        terms = []
        for name in names:
            size, width = (evidence.number("init_activations", "layers", name, key) for key in ("value", "width"))
            if has_biases(evidence):
                size, width = max(size, 1.0), width + 1
            terms.append(moved[name] + after[name] + log(size * math.sqrt(2 * math.log(2 * width) / n)))
        return log(2 * math.sqrt(2) * classes) + add(*terms)

    def frobenius() -> float:
        columns = sizes(evidence, "input_size")
        root = {name: 0.5 * log(columns[name]) for name in names}
        weight, start = (norms(evidence, "operator_frobenius", which) for which in ("weight", "init"))
        doubled = {name: TWO + max(weight[name], start[name]) for name in names}
        gains = compose(tree, doubled, {name: doubled[name] + root[name] for name in names}).gains
        distances = norms(evidence, "operator_frobenius", "displacement")
        inputs = log(evidence.number("input_norm", "max_l2"))
        front = log(2 * math.sqrt(2) * classes) + inputs - 0.5 * log(n)
        return front + TWO + add(*(distances[name] + gains[name] for name in names))

    def with_confidence(term, factor: float = 1.0, *covered: str) -> float:
        require(outside(evidence, "biases", "activations", *covered) or _pooling(evidence))
        tail = evidence.bounded_range() * confidence(n, evidence.delta)
        return add(log(factor * evidence.lipschitz()) + term(), log(tail))

    def frobenius_form() -> float:
        require(outside(evidence, "activations"))
        return with_confidence(frobenius)

    forms = {
        "paper": lambda: with_confidence(lambda: first(largest, largest)),
        "constant_2": (lambda: with_confidence(lambda: first(largest, largest), 0.5, "sums"), GAP),
        "asymmetric": (lambda: with_confidence(lambda: first(initial, tuned), 0.5, "sums"), GAP),
        "data_dependent": (lambda: with_confidence(data_dependent, 1.0, "sums"), GAP),
        "frobenius": frobenius_form,
    }
    note = outside(evidence, "biases", "activations") or _pooling(evidence)
    return bound_value(lambda side: first(largest, largest), forms, unverified(note))


GOUK2021 = Bound(
    "gouk2021",
    "Rademacher bound with largest row sums of the displacement and the weights, leading term",
    REFERENCE,
    ("structure", "layer_norms", "input_norm", "init_activations", "losses"),
    _gouk,
    has_structure,
)
