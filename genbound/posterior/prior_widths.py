r"""The width of every group's prior, and what choosing it costs.

The choice is paid for by a probability on all choices that is fixed beforehand: :math:`-\ln\Pi` of the one that is
made adds to the divergence. For few groups it is the same for all: :math:`G \ln K`. Many groups have widths that are
much alike, and then their description is short: one point of the grid for all, and each group's distance from it as an
integer under a universal prior (:mod:`genbound.estimators.universal_code`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from genbound.estimators.universal_code import code_nats
from genbound.posterior.gaussian import LAMBDAS, Spectrum, Width, log_union, objective, width_of

FEW = 8  # groups up to which each has a choice of its own. Fixed, as the grid is
ROUNDS = 6  # in which each group chooses again by how often the others chose each distance
PENALTIES = (0.0, 0.3, 1.0, 3.0)  # nats for a step of distance, to begin with


def best_widths(squares: Sequence[float], spectra: Sequence[Spectrum], scale: float) -> tuple[list[Width], float]:
    """``(widths, nats of their choice)`` for which F and these nats add up to least, as far as they are looked for.

    Args:
        squares: squared length of each group's displacement.
        spectra: curvature of each.
        scale: n / τ.
    """
    values = np.array(
        [[objective(width, s, h, scale) for width in LAMBDAS] for s, h in zip(squares, spectra, strict=True)]
    )
    if len(values) <= FEW:
        chosen, nats = values.argmin(1), log_union(len(values))
    else:
        chosen, nats = _alike(values)
    widths = [width_of(LAMBDAS[k], s, h, scale) for k, s, h in zip(chosen, squares, spectra, strict=True)]
    return widths, nats


def described(chosen: np.ndarray, base: int) -> float:
    """Nats of points of the grid ``[G]`` as distances from one of them."""
    return math.log(len(LAMBDAS)) + code_nats(chosen - base)


def _alike(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Points of the grid ``[G]`` and their nats, for F ``[G, K]``."""
    rows, points = np.arange(len(values)), np.arange(values.shape[1])
    tried: list[tuple[float, np.ndarray, float]] = []
    for base in np.unique([*values.argmin(1), int(values.sum(0).argmin())]):
        for penalty in PENALTIES:
            chosen = (values + penalty * np.abs(points - base)).argmin(1)
            for _ in range(ROUNDS):
                nats = described(chosen, base)
                tried.append((float(values[rows, chosen].sum()) + nats, chosen, nats))
                counts = np.bincount(chosen, minlength=len(points)) + 0.5
                again = (values - np.log(counts / counts.sum())).argmin(1)
                if (again == chosen).all():
                    break
                chosen = again
    _, chosen, nats = min(tried, key=lambda entry: entry[0])
    return chosen, nats
