r"""The largest :math:`v_i^\top H_i^+[\ell(f_W(x), y)]\, v_i` over the samples: what the theorem asks for.

Per **sample**, per layer's **own** block, truncated to the **positive part**. Every value is an interval that contains
the exact maximum over the samples measured:

* Where the block is positive semidefinite by structure, :math:`v^\top H v = \|S^\top u\|^2` with :math:`u = J_i v_i`
  and :math:`\nabla_f^2\ell = SS^\top`: for cross-entropy the variance of u under the predicted probabilities. Exact up
  to rounding.
* Elsewhere one product brackets every sample (:mod:`genbound.estimators.lanczos`), samples whose upper side is below
  the best lower side drop out, and the survivors are refined until the interval is narrower than ``tolerance``.

Rounding is covered by widening each side by ``2e-5`` (float32) or ``1e-11`` (float64) of :math:`\|v\|\|Hv\|`, and by
two units in the last place of :math:`\|H\|\|v\|^2`.

``convention="paper-code"`` computes instead what the published scripts do: the loss is the mean over a batch of
``paper_batch_size`` samples, :math:`v_i \cdot (Hv)_i` with the joint displacement of all layers (cross-layer blocks
leak in), no truncation, the maximum over batches, and a head whose displacement is its whole weight.

Cost:
    Positive semidefinite layers: min(k, L) backward passes for all layers. Others: one double backward pass per layer
    and sample, then a few per survivor (typically 2-10 % of the samples).

References:
    Ju, Li & Zhang, ICML 2022. Golub & Meurant, Matrices, Moments and Quadrature with Applications, 2010.
"""

from __future__ import annotations

import numpy as np
import torch

from genbound.curvature.layer_block import LayerBlock
from genbound.estimators.lanczos import Lanczos, rounding
from genbound.network.loss_functions import output_form
from genbound.quantities.base import Context, Measured, Part, plain, stack
from genbound.quantities.catalogue.max_quadratic_form import MaxQuadraticFormOptions

NAME = "max_quadratic_form"
QUANTILES = (0.5, 0.9, 0.99)
# Numbers of products after which brackets are computed and samples dropped.
CHECKPOINTS = frozenset({
    2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384,
    512,
})  # fmt: skip
KRYLOV_BYTES = 2**30
FIRST = 4  # samples that are refined to the end before the others
RECORDING = 8  # products that recording a tape is reckoned at
CONVENTIONS = ("theorem", "paper-code")


def screen(problem, positions: range) -> Part:
    """One bracket for every sample and layer."""
    lower = np.zeros((len(positions), len(problem.layers)))
    upper, exact = np.zeros_like(lower), np.ones_like(lower, dtype=bool)
    column = {layer.name: i for i, layer in enumerate(problem.layers)}
    for tape in problem.tapes(positions):
        rows = [p - positions[0] for p in tape.positions]
        moved = [n for n in tape.layers if tape.uses[n] and bool(problem.displacement[n].any())]
        certain = [n for n in moved if n in tape.positive_semidefinite]
        allowance = rounding(problem.dtype)
        for name, u in tape.output_derivatives({n: problem.displacement[n] for n in certain}).items():
            value = output_form(problem.loss, tape.outputs, tape.targets, u).cpu().numpy()
            lower[rows, column[name]], upper[rows, column[name]] = value * (1 - allowance), value * (1 + allowance)
        for name in moved:
            if name in certain:
                continue
            operator = LayerBlock(tape, name)
            start = operator.start(problem.displacement[name])
            run = Lanczos(operator.product, start)
            run.step(operator.precision)
            for i, row in enumerate(rows):
                lower[row, column[name]], upper[row, column[name]] = run.certified(i, problem.dtype)
            exact[rows, column[name]] = False
    return {"lower": lower, "upper": upper, "exact": exact}


def refine(problem, options: MaxQuadraticFormOptions, name: str, lower: np.ndarray, upper: np.ndarray) -> Part:
    """Refine the samples that may attain one layer's maximum until it is known to the tolerance.

    The most promising samples go first: a few to the end, so that the best lower side is a good one when the others are
    looked at, a batch at a time. A sample leaves as soon as its upper side falls below the best lower side, or is close
    enough to it.
    """
    lower, upper = lower.copy(), upper.copy()
    products, visited, by_batch = 0, set(), next(layer.by_batch for layer in problem.layers if layer.name == name)
    size = problem.batch_size if by_batch else 1
    if by_batch:  # all vectors of a recursion are kept in float64
        dimension = LayerBlock(problem.tape([int(np.argmax(upper))], [name]), name).dimension
        size = max(1, min(size, KRYLOV_BYTES // (8 * dimension * options.max_products)))

    def is_open(p: int) -> bool:
        return upper[p] > lower.max() / (1 - options.tolerance)

    while True:
        pending = [int(p) for p in np.argsort(-upper, kind="stable") if is_open(p) and p not in visited]
        pending = pending[: size if visited else min(size, FIRST)]
        if not pending:
            break  # certified, or every sample left has spent its products
        visited |= set(pending)
        for members in problem.batches(sorted(pending), size):
            operator = LayerBlock(problem.tape(members, [name]), name)
            run = Lanczos(operator.product, operator.start(problem.displacement[name]))
            while members and run.num_products < options.max_products:
                run.step(operator.precision)
                products += len(members)
                if run.num_products not in CHECKPOINTS and run.num_products != options.max_products:
                    continue
                for i, p in enumerate(members):
                    if not is_open(p):
                        continue
                    low, high = run.certified(i, problem.dtype)
                    lower[p], upper[p] = max(lower[p], low), min(upper[p], high)
                    lower[p] = min(lower[p], upper[p])
                rows = [i for i, p in enumerate(members) if is_open(p) and not run.ended(i)]
                # A smaller tape costs a few products; what is left takes perhaps as many as were needed so far.
                if (len(members) - len(rows)) * run.num_products >= RECORDING * len(rows):
                    members = [members[i] for i in rows]
                    if members:
                        operator = operator.narrowed(problem.tape(members, [name]), rows)
                        run = run.select(rows, operator.product)
    return {"lower": lower, "upper": upper, "products": np.array(products)}


def _certified(lower: np.ndarray, upper: np.ndarray, tolerance: float) -> bool:
    return bool(upper.max() - lower.max() <= tolerance * upper.max())


def measure(problem, context: Context) -> Measured:
    """The interval of every layer: all samples are screened, and those that may be the largest refined."""
    options: MaxQuadraticFormOptions = context.options
    if options.convention == "paper-code":
        return _measure_paper_code(problem, context)
    parts = context.map("screen", problem.shards(), lambda positions: screen(problem, positions))
    lower, upper, exact = (stack(parts, key) for key in ("lower", "upper", "exact"))
    open_layers = [
        i for i in range(len(problem.layers))
        if not exact[:, i].all() and not _certified(lower[:, i], upper[:, i], options.tolerance)
    ]  # fmt: skip
    refined = context.map(
        "refine", open_layers,
        lambda i: refine(problem, options, problem.layers[i].name, lower[:, i], upper[:, i]),
    )  # fmt: skip
    products = np.full(len(problem.layers), 0)
    for i, part in zip(open_layers, refined, strict=True):
        lower[:, i], upper[:, i], products[i] = part["lower"], part["upper"], part["products"]
    layers = {}
    for i, layer in enumerate(problem.layers):
        best = int(np.argmax(lower[:, i] if lower[:, i].any() else upper[:, i]))
        entry = {
            "value": plain(upper[:, i].max()),
            "lower": plain(lower[:, i].max()),
            "upper": plain(upper[:, i].max()),
            "sample": problem.indices[best],
            "exact": bool(exact[:, i].all()),
            "num_products": int(products[i]) + (0 if exact[:, i].all() else problem.num_samples),
            "quantiles": {
                f"{q:g}": [plain(np.quantile(lower[:, i], q)), plain(np.quantile(upper[:, i], q))] for q in QUANTILES
            },
        }
        if not _certified(lower[:, i], upper[:, i], options.tolerance):
            entry["note"] = f"not closed to {options.tolerance:g} within {options.max_products} products a sample"
        layers[layer.name] = entry
    note = "the maximum is over the samples measured: it understates the supremum over the distribution in the theorem"
    return Measured({"layers": layers, "convention": "theorem", "note": note}, {"lower": lower, "upper": upper})


def _measure_paper_code(problem, context: Context) -> Measured:
    size = context.options.paper_batch_size
    names = [layer.name for layer in problem.layers]
    displacement = {
        name: problem.params[name] if name in problem.head else problem.displacement[name] for name in names
    }
    runs = list(problem.batches(range(problem.num_samples), size))

    def batch(run: list[int]) -> Part:
        data = problem.batch(run)
        weights = {name: problem.params[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            outputs = problem.forward({**problem.params, **weights}, data.inputs)
            loss = problem.loss.per_sample(outputs, data.targets).mean()
            used = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
            inner = sum((g * displacement[n]).sum() for g, n in zip(used, names, strict=True) if g is not None)
        products = [None] * len(names)
        if inner.requires_grad:
            products = torch.autograd.grad(inner, list(weights.values()), allow_unused=True)
        values = [
            0.0 if hv is None else float((displacement[n].double() * hv.double()).sum())
            for n, hv in zip(names, products, strict=True)
        ]
        return {"value": np.array([values])}

    values = stack(context.map("batches", runs, batch), "value")
    layers = {
        name: {
            "value": plain(values[:, i].max()), "lower": plain(values[:, i].max()), "upper": plain(values[:, i].max()),
            "sample": None, "batch": int(values[:, i].argmax()),
        }
        for i, name in enumerate(names)
    }  # fmt: skip
    note = (
        f"convention of the published scripts: maximum over means of batches of {size}, "
        "joint displacement of all layers, no truncation; not the theorem's quantity"
    )
    return Measured({"layers": layers, "convention": "paper-code", "batch_size": size, "note": note})


def forecast(problem, options: MaxQuadraticFormOptions) -> float:
    """A gradient to screen each curved layer, and about as much again to refine the survivors."""
    curved = sum(not layer.positive_semidefinite for layer in problem.layers)
    return 0.5 + 0.4 * min(problem.num_outputs, len(problem.layers)) + 2.0 * curved
