"""What an evaluation would cost, from one gradient on one batch; and what is known before anything is measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from genbound.evaluation import get_options
from genbound.quantities import QUANTITIES


@dataclass(frozen=True)
class Forecast:
    """Expected cost.

    Attributes:
        seconds_per_gradient: measured: one forward and backward pass over all measured samples.
        gradients: quantity -> expected number of such gradients.
        peak_bytes: expected peak of the tensors: weights, their copies, and the graph of a double backward pass.
    """

    seconds_per_gradient: float
    gradients: dict[str, float]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        return self.seconds_per_gradient * sum(self.gradients.values())


def forecast(problem, names: list[str], options: Mapping[str, Mapping[str, Any]]) -> Forecast:
    """Time a gradient on one batch (the faster of two) and add up what the quantities will need.

    The memory is that of the tensors autograd keeps for one batch, three times over for a double backward pass, beside
    the weights, their initial values, displacements and one perturbed copy.
    """
    run = next(problem.batches(range(problem.num_samples)))
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    times = []
    for _ in range(2):
        begin = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tape = problem.tape(run)
        used = [w for name, w in tape.weights.items() if tape.uses[name]]
        torch.autograd.grad(tape.losses.sum(), used)
        times.append(time.perf_counter() - begin)
    weights = sum(p.numel() * p.element_size() for p in problem.params.values())
    gradients = {name: QUANTITIES[name].gradients(problem, get_options(name, options.get(name, {}))) for name in names}
    return Forecast(min(times) / len(run) * problem.num_samples, gradients, 4 * weights + 3 * sum(kept.values()))
