"""The rise of the loss under noise over all training samples, to 10 %: against shared draws at their best split.

As :mod:`benchmarks.rows.population_trace` does for the trace. A draw of the peers is one-sided and moves the weights
for all of its samples; it takes a forward pass of each, and one pass without noise is what the rises are from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

import genbound
from benchmarks import models
from benchmarks.clock import forward, typical
from benchmarks.rows.population_trace import ERROR, best_split
from benchmarks.rows.row import Row, row

SIGMA = 0.005


def rises(problem: genbound.Problem, sigma: float, draws: int) -> np.ndarray:
    """Of every measured sample under shared one-sided draws, ``[draws, N]``."""
    found = np.zeros((draws, problem.num_samples))
    for draw in range(draws + 1):
        source = torch.Generator().manual_seed(draw)
        moved = {
            layer.name: problem.params[layer.name] + sigma * torch.randn(layer.shape, generator=source)
            for layer in problem.layers
        }
        for run in problem.batches(range(problem.num_samples)):
            batch = problem.batch(run)
            with torch.no_grad():
                outputs = problem.forward({**problem.params, **(moved if draw < draws else {})}, batch.inputs)
                losses = problem.loss.per_sample(outputs, batch.targets).double().numpy()
            if draw < draws:
                found[draw, run] = losses
            else:
                found[:, run] -= losses
    return found


def variances(found: np.ndarray) -> tuple[float, float, float]:
    """Between samples, of what a draw has in common for all of them, and of what it has for one: of ``[draws, N]``."""
    draws, num = found.shape
    centred = found - found.mean(0)
    own = float((centred**2).sum(0).mean()) / (draws - 1)
    shared = max((float(centred.mean(1).var(ddof=1)) - own / num) * num / (num - 1), 0.0)
    halves = found[::2].mean(0), found[1::2].mean(0)
    return max(float(np.cov(*halves)[0, 1]), 0.0), shared, max(own - shared, 0.0)


def minilm_population_noise(num: int = 256, draws: int = 16) -> Iterator[Row]:
    """genbound's ``--error 0.1`` on MiniLM/SST-2, against the peers' best split."""
    problem = models.minilm(num)
    unit = typical(forward(problem), 1) / num
    options = {"hessian_trace": {"error": ERROR}, "noise_stability": {"error": ERROR, "sigmas": (SIGMA,)}}
    start = time.process_time()
    results = genbound.evaluate(problem, ["noise_stability"], options=options)
    yield noise_row(problem, results, (time.process_time() - start) / unit, rises(problem, SIGMA, draws))


def noise_row(problem: genbound.Problem, results: genbound.Results, passes: float, found: np.ndarray) -> Row:
    """The row.

    Args:
        problem: with some samples measured, on which the peers' draws are taken.
        results: of genbound, with the error asked for.
        passes: what these took, in forward passes of one sample.
        found: rises under the peers' draws ``[draws, N]``.
    """
    (ours,) = results.quantities["noise_stability"]["sigmas"]
    every, spent = len(problem.data), results.cost["seconds"]
    spread, shared, own = variances(found)
    samples, draws = best_split(spread, shared, own, (ERROR * ours["value"]) ** 2, every, once=1.0)
    theirs, whole = samples * (draws + 1), sum(spent.values())
    obtained = np.hypot(ours["sem"], ours["data_sem"]) / abs(ours["value"])
    # What an error that was not met takes beyond the run; the losses of all are had once.
    once, more = spent["losses"] / whole, max(1.0, (obtained / ERROR) ** 2)
    needed = passes * (once + (1 - once) * more)
    return row(
        f"noise_stability, mean over all {every}: MiniLM/SST-2, sigma {SIGMA:g}, to {ERROR:.0%}",
        f"{theirs / needed:.1f}x", ">= 20x", theirs / needed >= 20,
        f"genbound {needed:.0f} forward passes of single samples, extrapolated from {passes:.0f} ({once:.0%} of them "
        f"the losses of all, {spent['hessian_trace'] / whole:.0%} the trace; obtained {obtained:.1%} from "
        f"{ours['num_samples']} samples, {ours['num_perturbations']} noises); best peer {draws} one-sided draws on "
        f"{samples} samples drawn alike; standard deviations: {spread**0.5:.3f} between samples, {shared**0.5:.3f} of "
        f"a shared draw and {own**0.5:.3f} of a sample's own, rise {ours['value']:.4f}; from {len(found)} draws on "
        f"{found.shape[1]} samples", ratio=theirs / needed, spread=spread, shared=shared, own=own,
    )  # fmt: skip
