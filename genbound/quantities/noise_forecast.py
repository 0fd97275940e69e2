"""What ``noise_stability`` takes."""

from __future__ import annotations

import math

from genbound.network.problem import Problem
from genbound.quantities.catalogue.noise_stability import NoiseStabilityOptions
from genbound.quantities.chosen_samples import can_choose, usual_samples
from genbound.quantities.noise_grid import PILOT, SMALL, TAIL_PILOT
from genbound.quantities.weight_noise import NoisePerSample

SECOND, RECORDING = 1.3, 4.0  # forward passes: a draw's second-order term, and recording its batch before


def forecast(problem: Problem, options: NoiseStabilityOptions) -> float:
    """Gradients over the measured samples; with convolutions a noisy pass takes about two others."""
    convolutions = any(layer.kind == "convolution" for layer in problem.layers)
    return usual(problem, options) * (2.0 if convolutions else 1.0)


def usual(problem: Problem, options: NoiseStabilityOptions) -> float:
    """Likewise where a noisy pass is one like others: how long it takes is timed. Three passes are a gradient.

    A few pairs a sample are common, and ``least_pairs`` in all the least; a small problem has more. The second-order
    term of a draw takes 1.3 passes, and recording a batch for it four, once for the pilot and once for the draws.
    Where an error is asked for, the first samples are as many as the trace takes to it, and half of the sigmas have as
    many again, with a pair each.
    """
    num = problem.num_samples
    if not options.error or not can_choose(problem):
        return _passes(problem, options, num) / 3 / num
    first = usual_samples(problem, options.error)
    further = first * (1 + len(options.sigmas))
    return (_passes(problem, options, math.ceil(first)) + further) / 3 / num


def _passes(problem: Problem, options: NoiseStabilityOptions, num: int) -> float:
    """Forward passes of single samples that ``num`` samples take."""
    weights = sum(layer.num_weights for layer in problem.layers)
    affordable = min(NoisePerSample.most_draws // num, SMALL // (num * weights), options.small_perturbations)
    shared = options.num_shared * min(num, options.max_shared_samples)
    piloted = min(PILOT, num)
    pilot = max(options.num_pilot * piloted, options.least_pairs, min(TAIL_PILOT, affordable * piloted))
    pairs = max(min(4, options.max_perturbations) * num, options.least_pairs, 0.1 * affordable * num)
    second = SECOND * (pilot + pairs) + RECORDING * (piloted + num)
    return 2 * len(options.sigmas) * (shared + pilot + pairs) + second
