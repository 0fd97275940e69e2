r"""The mean loss on the straight line through both sets of weights, and the parabola that its curvature predicts.

With v = W - W0, all samples measured, and t = 0 at the initialisation, 1 at the fine-tuned weights:

.. math::

   L(t) = \hat L(W^{(s)} + t v), \qquad
   q(t) = L(1) + L'(1)\,(t - 1) + \tfrac12 L''(1)\,(t - 1)^2, \quad L''(1) = v^\top \nabla^2 \hat L(W)\, v .

This is the premise of bounds made of the displacement's Hessian, in one picture: where q follows L back to t = 0, the
curvature at W speaks of the whole way that the weights went. ``curvature`` is the form of the mean loss in all moved
weights together, blocks between layers included; the bound sums the layers' own blocks, of single samples.

Cost:
    A forward pass for each point and two more, and a forward and two backward passes for the slope and the curvature.
Variance:
    None: nothing is drawn. ``data_sem`` is what the choice of the measured samples adds.

References:
    Goodfellow, Vinyals & Saxe, Qualitatively characterizing neural network optimization problems, ICLR 2015.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from genbound.errors import GenboundError
from genbound.estimators.estimate import data_sem
from genbound.quantities.base import Context, Measured, Part
from genbound.quantities.catalogue.loss_path import LossPathOptions
from genbound.quantities.moved_loss import displacement_of, losses_at, moved, statistics_stay

if TYPE_CHECKING:
    from genbound.network.problem import Problem

STEP = 1 / 64  # of the difference that the slope is held against


def measure(problem: Problem, context: Context) -> Measured:
    """The loss at every point, and its first two derivatives along v at the fine-tuned weights."""
    options: LossPathOptions = context.options
    v = displacement_of(problem, options.moves)
    points = sorted({0.0, 1.0, *options.points})
    parts = context.map("points", points, lambda t: _losses(problem, moved(problem, v, t - 1.0)))
    (found,) = context.map("derivatives", [v], lambda v: _derivatives(problem, v))
    slope, curvature = (float(found[key]) for key in ("slope", "curvature"))
    at_end = float(parts[points.index(1.0)]["loss"].mean())
    beside = context.map("beside", [1.0 - STEP, 1.0 + STEP], lambda t: _losses(problem, moved(problem, v, t - 1.0)))
    _check_slope(problem, slope, curvature, [float(part["loss"].mean()) for part in beside])
    rows = []
    for t, part in zip(points, parts, strict=True):
        loss, error = part["loss"], part["error"]
        finite = bool(np.isfinite(loss).all())
        rows.append({
            "t": t,
            "value": float(loss.mean()) if finite else None,
            "data_sem": float(data_sem(loss, np.zeros_like(loss), problem.num_data)) if finite else None,
            "error": None if np.isnan(error).any() or not finite else float(error.mean()),
            "parabola": at_end + slope * (t - 1.0) + 0.5 * curvature * (t - 1.0) ** 2,
        })  # fmt: skip
    return Measured({
        "points": rows, "slope": slope, "curvature": curvature, "moves": options.moves,
        "num_samples": problem.num_samples, "of_all_data": problem.num_samples >= problem.num_data,
        "note": statistics_stay(problem),
    })  # fmt: skip


def _check_slope(problem: Problem, slope: float, curvature: float, beside: list[float]) -> None:
    """Refuse derivatives along v that are not those of the loss.

    A problem looks at the derivatives in its layers, and at those in other weights nobody else does.
    """
    difference = (beside[1] - beside[0]) / (2 * STEP)
    allowed = 0.1 * (abs(slope) + abs(curvature)) + 1e3 * torch.finfo(problem.dtype).eps * max(map(abs, beside))
    if abs(difference - slope) > allowed:
        raise GenboundError(
            f"the slope of the loss along the displacement is {slope:.3g}, and differences of the loss say"
            f" {difference:.3g}: the derivative in a weight that is no layer is hidden from autograd (torch.no_grad,"
            " .detach() or .data); let it be differentiated, or say --set loss_path.moves=layers"
        )


def _losses(problem: Problem, weights: dict[str, torch.Tensor]) -> Part:
    losses, errors = losses_at(problem, weights)
    return {"loss": losses, "error": np.full(len(losses), np.nan) if errors is None else errors}


def _derivatives(problem: Problem, v: dict[str, torch.Tensor]) -> Part:
    """First and second derivative of the mean loss along v at the fine-tuned weights."""
    sums = {"slope": 0.0, "curvature": 0.0}
    for run in problem.batches(range(problem.num_samples)):
        batch = problem.batch(run)
        length = torch.zeros((), dtype=problem.dtype, device=problem.device, requires_grad=True)
        with torch.enable_grad():
            outputs = problem.forward(moved(problem, v, length), batch.inputs)
            loss = problem.loss.per_sample(outputs, batch.targets).sum()
        for name in sums:
            if not loss.requires_grad:
                break  # a missing derivative is an exact zero
            (loss,) = torch.autograd.grad(loss, length, create_graph=True)
            sums[name] += float(loss.detach())
    return {name: np.array(value / problem.num_samples) for name, value in sums.items()}


def forecast(problem: Problem, options: LossPathOptions) -> float:
    """Gradients over the measured samples; a forward pass is a third of one."""
    return len({0.0, 1.0, *options.points}) / 3 + 2.0
