"""Timing: processor seconds of this process, and the physical unit that costs are stated in."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(function: Callable[[], object]) -> float:
    """Processor time of one call over all threads: other programs on the machine disturb it less than wall time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def typical(function: Callable[[], object], repeats: int = 3) -> float:
    """Median over a few calls, after one that warms up."""
    function()
    return statistics.median(seconds(function) for _ in range(repeats))


def gradient(problem) -> Callable[[], None]:
    """One forward and backward pass over all measured samples, with gradients of all parameters: the unit of cost."""

    def run() -> None:
        for positions in problem.batches(range(problem.num_samples)):
            batch = problem.batch(positions)
            params = {name: p.detach().requires_grad_() for name, p in problem.params.items()}
            loss = problem.loss.per_sample(problem.forward(params, batch.inputs), batch.targets).mean()
            torch.autograd.grad(loss, list(params.values()), allow_unused=True)

    return run


def forward(problem) -> Callable[[], None]:
    """One forward pass over all measured samples."""

    def run() -> None:
        with torch.no_grad():
            for positions in problem.batches(range(problem.num_samples)):
                problem.forward(problem.params, problem.batch(positions).inputs)

    return run
