"""What ``noise_stability`` takes."""

from __future__ import annotations

from genbound.network.problem import Problem
from genbound.quantities.catalogue.noise_stability import NoiseStabilityOptions
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
    """
    num, weights = problem.num_samples, sum(layer.num_weights for layer in problem.layers)
    affordable = min(NoisePerSample.most_draws // num, SMALL // (num * weights), options.small_perturbations)
    shared = options.num_shared * min(1.0, options.max_shared_samples / num)
    piloted = min(PILOT, num)
    pilot = max(options.num_pilot, options.least_pairs / piloted, min(TAIL_PILOT / piloted, affordable)) * piloted / num
    pairs = max(min(4, options.max_perturbations), options.least_pairs / num, 0.1 * affordable)
    second = SECOND * (pilot + pairs) + RECORDING * (piloted / num + 1)
    return (2 * len(options.sigmas) * (shared + pilot + pairs) + second) / 3
