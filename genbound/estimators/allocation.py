r"""How many draws each stratum gets, decided from a pilot round whose draws are not used again."""

from __future__ import annotations

import numpy as np


def allocate(
    variances: np.ndarray, targets: np.ndarray, *, minimum: int, budget: int, granularity: int = 2
) -> np.ndarray:
    r"""Draws per stratum so that every column of the stratified mean reaches its standard error.

    Neyman's allocation, :math:`m_s \propto a_s` with :math:`a_s^2 = \sum_l s_{sl}^2 / t_l^2`, scaled until the worst
    column meets its target and rounded up to powers of ``granularity``: coarse, so that rounding errors in the pilot
    rarely change a decision.

    Args:
        variances: pilot variance of one draw ``[S, L]``.
        targets: wanted standard error of each column's mean over strata ``[L]``; columns with 0 are ignored.
        minimum: least number of draws in a stratum.
        budget: cap on the mean number of draws per stratum.

    Returns:
        ``[S]`` integers.
    """
    strata = len(variances)
    use = targets > 0
    if not use.any() or not variances[:, use].any():
        return np.full(strata, minimum, dtype=int)
    scaled = variances[:, use] / targets[use] ** 2
    spread = np.sqrt(scaled.sum(1))
    spread = np.maximum(spread, 0.1 * spread.mean())  # few pilot draws can miss a spread altogether
    needed = (scaled / spread[:, None]).sum(0).max() / strata**2
    wanted = np.maximum(spread * needed, 1)
    wanted = np.maximum(wanted * min(1.0, budget / wanted.mean()), 1)
    rounded = granularity ** np.ceil(np.log(wanted) / np.log(granularity) - 1e-9).astype(int)
    return np.maximum(rounded, minimum).astype(int)
