"""The spread of the loss's rise over draws that all samples share: what papers print after a plus-minus sign."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genbound.network.problem import Problem
from genbound.quantities.base import Context
from genbound.quantities.weight_noise import NoisePerBlock


def shared_rises(problem: Problem, context: Context, losses: np.ndarray, positions: Sequence[int]) -> np.ndarray:
    """Rise of these samples' mean loss under draws that all of them share, for either sign, ``[D, S, 2]``.

    Args:
        problem: what is measured.
        context: of ``noise_stability``.
        losses: of every sample without noise ``[N]``.
        positions: the samples.
    """
    noise, sigmas = NoisePerBlock(problem, context, losses), context.options.sigmas
    numbers = list(range(context.options.num_shared))
    parts = context.map("shared", numbers, lambda draw: {"rise": noise.each(list(positions), ("shared", draw), sigmas)})
    shares = problem.shares[list(positions)]
    return np.stack([np.average(part["rise"], axis=0, weights=shares) for part in parts])


def std_over_shared_draws(rises: np.ndarray) -> np.ndarray:
    """Standard deviation of the mean loss's rise over one-sided draws ``[S]``, from antithetic pairs ``[D, S, 2]``.

    The even and the odd part of the rise are uncorrelated, and the odd one has mean zero.
    """
    even, odd = rises.mean(2), 0.5 * (rises[..., 0] - rises[..., 1])
    return np.sqrt(even.var(0, ddof=1) + (odd**2).mean(0))
