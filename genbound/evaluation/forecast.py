"""What an evaluation would cost, from one gradient on one batch; and what is known before anything is measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genbound.evaluation.effort import Plan
from genbound.evaluation.selection import get_options
from genbound.network.memory import graph_bytes, weight_bytes
from genbound.network.problem import Problem
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
        """All gradients together."""
        return self.seconds_per_gradient * sum(self.gradients.values())


def forecast(problem: Problem, names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> Forecast:
    """Time a gradient on one batch (the faster of two) and add up what the quantities will need.

    Args:
        problem: what they would be measured on.
        names: quantities.
        options: quantity -> its options, where they are not the defaults.
    """
    gradients = {name: QUANTITIES[name].gradients(problem, get_options(name, options.get(name, {}))) for name in names}
    return _timed(problem, gradients)


def forecast_of(problem: Problem, planned: Plan) -> Forecast:
    """The cost of what is measured of a plan; quantities that do not apply cost nothing.

    Args:
        problem: what they would be measured on.
        planned: what is measured.
    """
    kept = planned.selection.options
    return _timed(problem, {name: cost for name, cost in planned.gradients.items() if name in kept})


def _timed(problem: Problem, gradients: dict[str, float]) -> Forecast:
    """A forecast with the time of a gradient on one batch, the faster of two."""
    run = next(problem.batches(range(problem.num_samples)))
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        tape = problem.tape(run)
        used = [w for name, w in tape.weights.items() if tape.uses[name]]
        torch.autograd.grad(tape.losses.sum(), used)
        times.append(time.perf_counter() - begin)
    peak = weight_bytes(problem) + graph_bytes(problem, run, problem.samples_first)
    return Forecast(min(times) / len(run) * problem.num_samples, gradients, peak)
