r"""The spectrum of each layer's Hessian block of the mean loss, and of the Hessian in all layers together.

.. math:: H = \frac1N \sum_x \nabla^2 \ell(f_W(x), y)

over all measured samples: its largest and smallest eigenvalue, and the density of its eigenvalues, by stochastic
Lanczos quadrature (:mod:`genbound.estimators.lanczos_quadrature`). The total has the blocks between the
layers. With the option ``curvature`` it is the Gauss-Newton part or Fisher's information instead, and the rows say so.

``value`` is the largest Ritz value of all start vectors. The largest eigenvalue of the samples measured lies in
``[lower, upper]``, but for a failure probability of 1e-6 a matrix and, for products in single precision, an allowance
for rounding; likewise ``smallest``. What the choice of samples adds is not known: eigenvalues of a mean are no mean.

Cost:
    ``num_steps`` times ``num_probes`` products with each layer's block, and with the total.
Variance:
    Of the density: its relative error falls with the number of eigenvalues that it counts, so a peak of a single one
    has its place, and hardly its height. ``nodes`` and ``weights`` hold each start vector's quadrature.

References:
    Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl. 38,
    2017. Ghorbani, Krishnan & Xiao, An investigation into neural net optimization via Hessian eigenvalue density, ICML
    2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genbound.curvature.mean_products import MeanCurvature
from genbound.errors import GenboundError
from genbound.estimators.lanczos import BLOCK, Lanczos, rounding
from genbound.estimators.lanczos_quadrature import FAILURE, Recursions
from genbound.quantities.base import Context, Measured, Part, stream
from genbound.quantities.catalogue.hessian_spectrum import HessianSpectrumOptions

if TYPE_CHECKING:
    from genbound.network.problem import Problem

NAME = "hessian_spectrum"
KRYLOV_BYTES = 2**33  # for the basis of the recursions that run side by side
PRECISION = {torch.float64: 1e-12}  # relative size below which a residual is rounding; 1e-6 for other types


def measure(problem: Problem, context: Context) -> Measured:
    """The spectrum of every matrix that is asked for."""
    options: HessianSpectrumOptions = context.options
    names = [layer.name for layer in problem.layers]
    groups = [[name] for name in names] if options.scope != "total" else []
    groups += [names] if options.scope != "layers" else []
    parts = context.map("recursions", groups, lambda group: _recursions(problem, context, group))
    rows = [_row(problem, options, part) for part in parts]
    layers = dict(zip(names, rows, strict=False)) if options.scope != "total" else {}
    total = rows[-1] if options.scope != "layers" else None
    return Measured({
        "layers": layers, "total": total, "curvature": options.curvature, "num_samples": problem.num_samples,
        "failure": FAILURE,
    })  # fmt: skip


def _recursions(problem: Problem, context: Context, names: Sequence[str]) -> Part:
    """Diagonals and off-diagonals from every start vector ``[K, k]``."""
    options: HessianSpectrumOptions = context.options
    matrix = MeanCurvature(problem, names, options.curvature)
    size, key = matrix.dimension, names[0] if len(names) == 1 else "total"
    steps, side_by_side = _room(size, min(options.num_steps, size), options.num_probes)
    alphas, betas = [], []
    for first in range(0, options.num_probes, side_by_side):
        draws = range(first, min(first + side_by_side, options.num_probes))
        # In float64: single precision would make tiny components likelier than on the sphere.
        starts = [torch.randn(size, generator=stream(context, NAME, key, draw), dtype=torch.float64) for draw in draws]
        run = Lanczos(matrix.products, torch.stack(starts).to(problem.device))
        for _ in range(steps):
            run.step(PRECISION.get(problem.dtype, 1e-6))
        alphas.append(run.alpha.T)
        betas.append(run.beta.T)
    alpha, beta = np.concatenate(alphas), np.concatenate(betas)
    ended = np.cumsum(beta == 0, axis=1) - (beta == 0) > 0  # behind the first residual of zero
    alpha[ended] = beta[ended] = np.nan
    return {"alpha": alpha, "beta": beta, "dimension": np.array(size)}


def _room(size: int, steps: int, probes: int) -> tuple[int, int]:
    """``(steps, recursions side by side)`` whose basis, kept in blocks of vectors in float64, fits the memory."""
    fitting = KRYLOV_BYTES // (8 * size * BLOCK) * BLOCK
    if fitting == 0:
        raise GenboundError(
            f"hessian_spectrum: {BLOCK} vectors of {size} weights take more than {KRYLOV_BYTES / 2**30:.0f} GiB: "
            "measure layers alone (--set hessian_spectrum.scope=layers), or fewer of them (--layers)"
        )
    steps = min(steps, fitting)
    blocks = -(-steps // BLOCK) * BLOCK
    return steps, max(1, min(probes, fitting // blocks))


def _row(problem: Problem, options: HessianSpectrumOptions, part: Part) -> dict[str, Any]:
    """What is reported of a matrix."""
    size = int(part["dimension"])
    precision, allowance = PRECISION.get(problem.dtype, 1e-6), rounding(problem.dtype)
    found = Recursions(part["alpha"], part["beta"], size, precision, allowance)
    quadratures = found.quadratures()
    (low, high), (least, most) = found.largest(), found.smallest()
    return {
        "value": float(max(nodes.max() for nodes, _ in quadratures)), "lower": low, "upper": high,
        "smallest": {"value": float(min(nodes.min() for nodes, _ in quadratures)), "lower": least, "upper": most},
        "dimension": size,
        "num_products": int(np.isfinite(part["alpha"]).sum()), "curvature": options.curvature,
        "nodes": [nodes.tolist() for nodes, _ in quadratures],
        "weights": [weights.tolist() for _, weights in quadratures],
    }  # fmt: skip


def forecast(problem: Problem, options: HessianSpectrumOptions) -> float:
    """Gradients over the measured samples: a step is one on the graph, and another for each vector."""
    matrices = (0.6 * len(problem.layers) if options.scope != "total" else 0.0) + (options.scope != "layers")
    return matrices * options.num_steps * (1.0 + options.num_probes)
