r"""The largest :math:`v_i^\top H_i^+[\ell(f_W(x), y)]\, v_i` over the samples: what the theorem asks for.

Per **sample**, per layer's **own** block, truncated to the **positive part**. Every value is an interval that contains
the exact maximum over the samples measured:

* Where the block is positive semidefinite by structure, :math:`v^\top H v = \|S^\top u\|^2` with :math:`u = J_i v_i`
  and :math:`\nabla_f^2\ell = SS^\top`: for cross-entropy the variance of u under the predicted probabilities. Exact up
  to rounding.
* Elsewhere one product brackets every sample (:mod:`genbound.estimators.lanczos`). Samples whose upper side is below
  the best lower side drop out. The survivors are refined until the sum over the layers of the roots of their intervals
  is narrower than ``tolerance`` (:mod:`genbound.estimators.root_sum`), or with ``tolerance_of="layer"`` each interval.

Rounding is covered by widening each side by ``2e-5`` (float32) or ``1e-11`` (float64) of :math:`\|v\|\|Hv\|`, and by
two units in the last place of :math:`\|H\|\|v\|^2`.

``maximum="found"`` looks at all training samples and refines the most promising ones
(:mod:`genbound.quantities.largest_found`). ``convention="paper-code"`` computes instead what the published scripts do
(:mod:`genbound.quantities.published_forms`).

Cost:
    Positive semidefinite layers: min(k, L) backward passes for all layers. Others: one double backward pass per layer
    and sample, then a few per survivor (typically 2-10 % of the samples).

References:
    Ju, Li & Zhang, ICML 2022. Golub & Meurant, Matrices, Moments and Quadrature with Applications, 2010.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np

from genbound.estimators.disk_table import Table
from genbound.estimators.root_sum import widths_for_sum
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, plain, stacked
from genbound.quantities.catalogue.max_quadratic_form import MaxQuadraticFormOptions
from genbound.quantities.largest_found import forecast_found, measure_found, usual_found
from genbound.quantities.published_forms import measure_as_published
from genbound.quantities.quadratic_brackets import Refinement, is_closed, next_round, screen

QUANTILES = (0.5, 0.9, 0.99)
OF_SUM = 0.82  # of the products that every layer to the tolerance takes, for the sum


def measure(problem: Problem, context: Context) -> Measured:
    """The interval of every layer: all samples are screened, and those that may be the largest refined."""
    options: MaxQuadraticFormOptions = context.options
    if options.convention == "paper-code":
        return measure_as_published(problem, context)
    if options.maximum == "found":
        return measure_found(problem, context)
    screened = stacked(context, "screen", problem.shards(), lambda shard: screen(problem, shard))
    lower, upper = screened["lower"], screened["upper"]
    exact = np.array([screened["exact"][:, i].all() for i in range(len(problem.layers))])
    products = np.where(exact, 0, problem.num_samples)
    asked = _refine(problem, context, exact, lower, upper, products)
    rows = {
        layer.name: _row(problem, replace(options, tolerance=float(asked[i])), lower[:, i], upper[:, i], products[i])
        | {"exact": bool(exact[i]), "num_products": int(products[i])}
        for i, layer in enumerate(problem.layers)
    }
    note = "the maximum is over the samples measured: it understates the supremum over the distribution in the theorem"
    return Measured({"layers": rows, "convention": "theorem", "note": note}, {"lower": lower, "upper": upper})


def _refine(
    problem: Problem, context: Context, exact: np.ndarray, lower: Table, upper: Table, products: np.ndarray
) -> np.ndarray:
    """Narrow the brackets ``[N, L]`` of the layers that are not exact, by rounds, and add the products they take.

    What a round does is a function of the brackets before it: of the data alone, not of who computes which part.

    Returns:
        Relative width that each layer's interval had to reach ``[L]``.
    """
    options: MaxQuadraticFormOptions = context.options
    visited: dict[int, set[int]] = {i: set() for i in np.flatnonzero(~exact).tolist()}
    asked = _widths(options, lower, upper, np.ones_like(exact))
    for number in count():
        closed = np.array([is_closed(lower[:, i], upper[:, i], asked[i]) for i in range(len(asked))])
        left = ~exact & ~closed
        asked[left] = _widths(options, lower, upper, left)[left]
        items = [
            (i, positions)
            for i, seen in visited.items()
            for positions in next_round(number, lower[:, i], upper[:, i], seen, asked[i])
        ]
        if not items:
            break

        def narrowed(item: tuple[int, list[int]]) -> Part:
            i, positions = item
            own = replace(options, tolerance=float(asked[i]))
            return Refinement(problem, own, problem.layers[i], lower[:, i], upper[:, i]).among(positions)

        for (i, positions), part in zip(items, context.map(f"refine {number}", items, narrowed), strict=True):
            lower[positions, i], upper[positions, i] = part["lower"], part["upper"]
            products[i] += part["products"]
    return asked


def _widths(options: MaxQuadraticFormOptions, lower: Table, upper: Table, left: np.ndarray) -> np.ndarray:
    """Relative widths that the intervals may have of the layers that are left ``[L]``."""
    if options.tolerance_of == "layer":
        return np.full(len(left), options.tolerance)
    lowest, highest = (np.array([side[:, i].max() for i in range(len(left))]) for side in (lower, upper))
    return widths_for_sum(lowest, highest, left, options.tolerance)


def _row(
    problem: Problem, options: MaxQuadraticFormOptions, lower: np.ndarray, upper: np.ndarray, products: int
) -> dict:
    """What is reported of one layer, from its bracket of every sample ``[N]`` and the products of all of them."""
    best = int(np.argmax(lower if lower.any() else upper))
    row = {
        "value": plain(upper.max()),
        "lower": plain(lower.max()),
        "upper": plain(upper.max()),
        "sample": problem.indices[best],
        "quantiles": {f"{q:g}": [plain(np.quantile(lower, q)), plain(np.quantile(upper, q))] for q in QUANTILES},
    }
    if not is_closed(lower, upper, options.tolerance):
        spent = products - problem.num_samples >= options.max_products  # else every space was exhausted before
        left = f" within {options.max_products} products a sample" if spent else ": what is left is rounding"
        row["note"] = f"not closed to {options.tolerance:.3g}{left}"
    return row


def forecast(problem: Problem, options: MaxQuadraticFormOptions) -> float:
    """Gradients over the measured samples.

    Screening a curved layer takes 0.6 of one. Its survivors take some 600 products on single samples, or 300 each where
    there are fewer; both were measured on a transformer of 38 layers and 256 samples, refined layer by layer. Where the
    sum over the layers is what is to be known, 0.82 of these will do (likewise).
    """
    if options.maximum == "found":
        return forecast_found(problem, options)
    return _certified(problem, options, 1.0)


def usual(problem: Problem, options: MaxQuadraticFormOptions) -> float:
    """Likewise by time, which products of samples that are alone in their pass take more of.

    Of the refinement it counts half: three small networks took next to none of it.
    """
    return usual_found(problem, options) if options.maximum == "found" else _certified(problem, options, 0.5)


def unforeseen(problem: Problem, options: MaxQuadraticFormOptions) -> str:
    """What the forecast cannot know, in a sentence; empty where there is nothing to say."""
    if options.maximum == "found" or all(layer.positive_semidefinite for layer in problem.layers):
        return ""
    return (
        "what the certified maximum's refinement takes is known only when all samples are screened; the forecast has "
        "half of what it took on MiniLM, and small networks took next to none"
    )


def _certified(problem: Problem, options: MaxQuadraticFormOptions, part: float) -> float:
    """The screening, and a part of the refinement that a transformer took."""
    curved = sum(not layer.positive_semidefinite for layer in problem.layers)
    refined = part * min(600.0 / problem.num_samples, min(300, options.max_products))
    refined *= OF_SUM if options.tolerance_of == "sum" else 1.0
    return 0.5 + 0.4 * min(problem.num_outputs, len(problem.layers)) + (0.6 + refined) * curved
