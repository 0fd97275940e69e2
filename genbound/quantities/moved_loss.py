"""The loss at weights beside the fine-tuned ones: what is moved, and every sample's loss there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from genbound.network.problem import Problem


def displacement_of(problem: Problem, moves: str) -> dict[str, Tensor]:
    """Weight -> fine-tuned minus pretrained, ``[*shape]``, in the weights' unit.

    Args:
        problem: whose weights.
        moves: ``layers``, or ``all`` for biases, normalisations and embeddings too.
    """
    layers = {layer.name: problem.displacement[layer.name] for layer in problem.layers}
    if moves == "layers":
        return layers
    return {
        name: layers[name] if name in layers else weight - problem.init[name]
        for name, weight in problem.params.items()
        if weight.is_floating_point()
    }


def moved(problem: Problem, steps: Mapping[str, Tensor], length: float | Tensor = 1.0) -> dict[str, Tensor]:
    """All weights, those that have a step moved ``length`` times along it."""

    def moved_by(step: Tensor) -> Tensor:
        return (length.to(step.device) if isinstance(length, Tensor) else length) * step

    return {**problem.params, **{name: problem.params[name] + moved_by(step) for name, step in steps.items()}}


def losses_at(problem: Problem, weights: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray | None]:
    """Loss and 0-1 error of every measured sample at these weights.

    Running statistics are those of the fine-tuned network. A loss that overflows is infinite or NaN.

    Returns:
        ``(losses [N], errors [N])`` in float64; no errors where the loss knows none.
    """
    losses, errors = np.zeros(problem.num_samples), np.full(problem.num_samples, np.nan)
    for run in problem.batches(range(problem.num_samples)):
        batch = problem.batch(run)
        with torch.no_grad():
            outputs = problem.forward(weights, batch.inputs)
            losses[run] = problem.loss.per_sample(outputs, batch.targets).double().cpu().numpy()
            if problem.loss.error is not None:
                errors[run] = problem.loss.error(outputs, batch.targets).double().cpu().numpy()
    return losses, None if problem.loss.error is None else errors


def statistics_stay(problem: Problem) -> str:
    """A sentence for the reader where the two networks have different running statistics; empty otherwise."""
    differ = [n for n, b in problem.buffers.items() if not torch.equal(b, problem.init_buffers[n])]
    if not any(problem.buffers[name].is_floating_point() for name in differ):
        return ""
    return "running statistics stay those of the fine-tuned network: at W0 this is not quite the pretrained one"
