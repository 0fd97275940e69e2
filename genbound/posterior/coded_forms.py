r"""Which form each of many tensors is described in: a choice that costs little where they are much alike.

For few tensors all forms are alike, :math:`\ln 4` each. More than :data:`FEW` have, with probability one half, one
form for all; else they are symbols of any frequencies under the universal prior of Krichevsky and Trofimov. A hundred
tensors that all stay where they are take 2 nats, and not 139. How many tensors there are is known before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import gammaln

from genbound.posterior.coded_tensor import EVEN, FORMS, STEPS, Coded, TensorCode

FEW = 8  # tensors up to which all forms are alike. Fixed, as the prior is
ROUNDS = 6  # in which each tensor chooses again by how often the others chose each form


def forms_nats(forms: Sequence[str]) -> float:
    """Minus the logarithm of the probability of these forms.

    Args:
        forms: of every tensor, of :data:`~genbound.posterior.coded_tensor.FORMS`.

    Example:
        >>> round(forms_nats(["zero"] * 100), 2), round(forms_nats(["zero"] * 2), 2)
        (2.07, 2.77)
    """
    if len(forms) <= FEW:
        return len(forms) * math.log(len(FORMS))
    counts, half = Counter(forms), len(FORMS) / 2
    symbols = sum(gammaln(counts[form] + 0.5) - gammaln(0.5) for form in FORMS)
    apart = float(gammaln(half + len(forms)) - gammaln(half) - symbols)
    together = math.log(len(FORMS)) if len(counts) == 1 else math.inf
    return math.log(2) - float(np.logaddexp(-apart, -together))


def length(choice: Mapping[str, Coded]) -> float:
    """Of all descriptions together, in nats."""
    forms = [coded.form for coded in choice.values()]
    return sum(coded.nats - math.log(len(FORMS)) for coded in choice.values()) + forms_nats(forms)


def gridded(codes: Mapping[str, TensorCode], curvatures: Mapping[str, float]) -> list[dict[str, Coded]]:
    """All tensors on grids, finer where the curvature is larger, so that every rounding costs alike: for every step.

    Where the length falls in proportion to what is left out, hardly any of them minimises a weighted sum of both, and
    rounded entries, which err independently, harm a network less than as large an error of low rank.

    Args:
        codes: tensor -> its descriptions.
        curvatures: tensor -> along its coordinates.
    """
    scale = math.sqrt(max(curvatures.values(), default=0.0))
    finer = {name: scale / math.sqrt(h) if h > 0 else math.inf for name, h in curvatures.items()}
    found: list[dict[str, Coded]] = []
    for step in STEPS:
        choice = {name: code.gridded(min(step * finer[name], max(STEPS))) for name, code in codes.items()}
        if choice not in found and any(coded.form != "zero" for coded in choice.values()):
            found.append(choice)
    return found


def best_choice(codes: Mapping[str, TensorCode], weights: Mapping[str, float]) -> dict[str, Coded]:
    """Descriptions whose length and weighted errors add up to least, as far as they are looked for.

    Args:
        codes: tensor -> its descriptions.
        weights: tensor -> what its error costs, in nats.
    """
    prices, tried = EVEN, []
    for _ in range(ROUNDS if len(codes) > FEW else 1):
        choice = {name: code.best(weights[name], prices) for name, code in codes.items()}
        tried.append(choice)
        counts = Counter(coded.form for coded in choice.values())
        prices = {form: -math.log((counts[form] + 0.5) / (len(codes) + len(FORMS) / 2)) for form in FORMS}
        if len(tried) > 1 and tried[-1] == tried[-2]:
            break
    return min(tried, key=lambda choice: length(choice) + sum(weights[n] * c.error for n, c in choice.items()))
