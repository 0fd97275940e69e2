r"""The mean loss on a plane through both sets of weights: along v, and along a filter-normalised random direction.

.. math:: L(t, b) = \hat L(W^{(s)} + t v + b\, d), \qquad d_j = \|W_j\| \, g_j / \|g_j\|, \; g_j \sim \mathcal N(0, I)

with one j for each filter of a layer (an output's row of a weight), all samples measured. Normalised so, b = 1 moves
every filter by as much as it is long, and the picture does not depend on how a layer's scale is shared with the next
one's. Weights that are no layers have no part in d. The direction is one draw, named by the seed: sharp and flat
directions are not told apart by it.

Cost:
    A forward pass for each point of the grid.
Variance:
    None at the points; another seed shows another plane.

References:
    Li, Xu, Taylor, Studer & Goldstein, Visualizing the loss landscape of neural nets, NeurIPS 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from genbound.estimators.random import normal
from genbound.quantities.base import Context, Measured, Part, stack, stream
from genbound.quantities.catalogue.loss_plane import LossPlaneOptions
from genbound.quantities.moved_loss import displacement_of, losses_at, moved, statistics_stay

if TYPE_CHECKING:
    from genbound.network.problem import Problem

NAME = "loss_plane"


def measure(problem: Problem, context: Context) -> Measured:
    """The mean loss at every point of the grid."""
    options: LossPlaneOptions = context.options
    along, across = sorted({0.0, 1.0, *options.along}), sorted({0.0, *options.across})
    v, d = displacement_of(problem, options.moves), random_direction(problem, context)

    def loss(point: tuple[float, float]) -> Part:
        weights = moved(problem, v, point[0] - 1.0)
        losses, _ = losses_at(
            problem, {**weights, **{name: weights[name] + point[1] * step for name, step in d.items()}}
        )
        return {"loss": losses.mean(keepdims=True)}

    parts = context.map("points", [(t, b) for b in across for t in along], loss)
    values = stack(parts, "loss").reshape(len(across), len(along))
    return Measured({
        "along": along, "across": across,
        "loss": [[float(x) if np.isfinite(x) else None for x in row] for row in values],
        "moves": options.moves, "num_samples": problem.num_samples, "note": statistics_stay(problem),
    })  # fmt: skip


def random_direction(problem: Problem, context: Context) -> dict[str, Tensor]:
    """Layer -> random weights ``[*shape]``, every row with the norm of the fine-tuned weight's row."""
    found = {}
    for layer in problem.layers:
        weight = problem.params[layer.name]
        draw = normal(tuple(weight.shape), stream(context, NAME, layer.name), weight)
        norms = (weight.flatten(1).norm(dim=1) / draw.flatten(1).norm(dim=1)).view(-1, *[1] * (weight.dim() - 1))
        found[layer.name] = norms * draw
    return found


def forecast(problem: Problem, options: LossPlaneOptions) -> float:
    """Gradients over the measured samples; a forward pass is a third of one."""
    return len({0.0, 1.0, *options.along}) * len({0.0, *options.across}) / 3
