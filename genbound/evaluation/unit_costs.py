"""What a quantity's work takes on this machine: the seconds of a few of its units, on this network and in this process.

A quantity's forecast counts gradients, which makes the quantities comparable. What a gradient's worth of its work takes
is another matter: noise is drawn on the processor, and a sample alone takes more than its part of a batch. So a *unit*
of each kind is timed, on the samples of one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from genbound.curvature.layer_block import LayerBlock
from genbound.curvature.noise_by_row import Normals, can_move_rows, noisy_losses
from genbound.estimators.random import row_of
from genbound.network.problem import Problem

# Unit -> the gradients on single samples that forecasts count it as: a forward pass; a backward pass beside it; a pair
# of noisy passes at one sigma; a product of one sample alone with the block of a layer halfway up.
NOMINAL = {"forward": 1 / 3, "gradient": 1.0, "noise": 2 / 3, "product": 0.7}
SIGMA, SIGMAS = 0.001, 5  # of the noise, and how many a draw serves as usual
LONG = 2.0  # seconds of work that is timed once: what else runs beside it hardly doubles that


def unit_seconds(problem: Problem) -> dict[str, float]:
    """Unit -> its seconds for one sample; one that the network has not is left out.

    Cost: twice each of them, on one batch; once those that take seconds.
    """
    run = next(problem.batches(range(problem.num_samples)))
    batch, own = problem.batch(run), [(p, *row_of("time", p, 0, 1)) for p in run]
    curved = [layer.name for layer in problem.layers if not layer.positive_semidefinite and layer.kind != "unused"]

    def forward() -> None:
        with torch.no_grad():
            problem.forward(problem.params, batch.inputs)

    def gradient() -> None:
        tape = problem.tape(run)
        used = [weight for name, weight in tape.weights.items() if tape.uses[name]]
        torch.autograd.grad(tape.losses.sum(), used)

    found = {"forward": _seconds(forward), "gradient": _seconds(gradient)}
    if can_move_rows(problem):
        normals = Normals(own, 0, problem.params)

        def noise() -> None:
            noisy_losses(problem, own, normals, (SIGMA, -SIGMA))

        drawing, known = _once(noise), _seconds(noise)  # the normals are drawn in the first pass
        found["noise"] = known + max(drawing - known, 0.0) / SIGMAS
    else:
        found["noise"] = 2 * found["forward"]
    found = {unit: seconds / len(run) for unit, seconds in found.items()}
    if curved:
        middle = curved[len(curved) // 2]
        block = LayerBlock(problem.tape(run[:1], [middle]), middle)
        weight = problem.params[middle]
        start = block.start(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight))
        found["product"] = _seconds(lambda: block.product(start))
    return found


def reading_seconds(problem: Problem) -> float:
    """Seconds of a product of every layer's weight in float64 with one vector: a reading of all weights."""
    weights = [problem.params[layer.name].flatten(1) for layer in problem.layers]

    def read() -> None:
        for weight in weights:
            weight.double() @ weight.new_ones(weight.shape[1], dtype=torch.float64)

    return _seconds(read)


def factors(seconds: Mapping[str, float]) -> dict[str, float]:
    """Unit -> how many times as long its work takes as forecasts in gradients say; 1 for one that was not timed."""
    return {
        unit: seconds[unit] / (nominal * seconds["gradient"]) if unit in seconds else 1.0
        for unit, nominal in NOMINAL.items()
    }


def _seconds(work: Callable[[], object]) -> float:
    """The faster of two; of work that takes long the first."""
    first = _once(work)
    return first if first > LONG else min(first, _once(work))


def _once(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
