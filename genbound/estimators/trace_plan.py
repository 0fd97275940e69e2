r"""How the probes of a trace are spent: which kind for which sample, and how many.

Three kinds of probe see a sample's remainder (:mod:`genbound.curvature.traces`). A *double backward* probe gives all
layers at once, with cross-layer noise. *Separate* sweeps give every layer without that noise, at half a forward pass a
layer. A *joint* sweep gives the sum over the layers alone, at a forward pass. So the layers' own errors are met by
double backward probes for the many samples with little spread and by separate sweeps for the few with much, whichever
is cheaper by the spread that a pilot found, and what the total then lacks is met by joint sweeps.

The joint draws correct the layers as well, so that they still add up: with :math:`x_i` a draw of layer i and T the mean
of the joint draws of a sample, its layers become :math:`x_i + w\,b_i\,(T - \sum_j x_j)` with a weight w of the sample
and shares b of the layers, fixed before T is drawn and by all samples together: unbiased whatever they are, and best if
w is T's share of the information and b the layers' shares of the variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from genbound.estimators.allocation import allocate

# Time of a probe, in forward passes: a double backward one and a joint sweep.
BACKWARD, JOINT = 3.5, 1.3
WORTH = 2  # joint draws of a sample for which recording a sweep pays
FEW = 8  # double backward probes of a sample, up to which nobody asks for separate sweeps


@dataclass(frozen=True)
class Sweeps:
    """What is known of sweeps, measured when it is asked for.

    Attributes:
        ratios: ``() -> (ratios [L], passes)``: each layer's variance in separate sweeps over that in double backward
            probes, and the forward passes that one takes for all layers; ``None`` if separate sweeps are not thought
            of.
        joint: ``() -> variance of a joint sweep over that of the sum of a double backward probe``.
    """

    ratios: Callable[[], tuple[np.ndarray, float]] | None
    joint: Callable[[], float]


@dataclass(frozen=True)
class Plan:
    """How the probes of ``S`` samples and ``L`` layers are spent.

    Attributes:
        counts: probes of the layers ``[S]``, separate sweeps where ``separate [S]``, else double backward ones.
        joint: joint sweeps ``[S]``.
        weight: of the joint draws of each sample ``[S]``.
        shares: of the layers in what the joint draws correct ``[L]``.
        deviation: expected standard deviation of a probe of each layer ``[S, L]``, of its own block alone where that is
            known.
    """

    counts: np.ndarray
    separate: np.ndarray
    joint: np.ndarray
    weight: np.ndarray
    shares: np.ndarray
    deviation: np.ndarray

    def passes(self) -> float:
        """Time of a sample's double backward probes and joint sweeps in forward passes, on the average."""
        return float((BACKWARD * self.counts * ~self.separate + JOINT * self.joint).mean())


def plan_probes(
    variances: np.ndarray, targets: np.ndarray, minimum: int, budget: int, sweeps: Sweeps | None = None
) -> Plan:
    """Probes for the wanted standard errors.

    Args:
        variances: of one double backward probe ``[S, L + 1]``, the last column that of the sum over the layers.
        targets: wanted standard errors of the means over the samples ``[L + 1]``; columns with 0 are ignored.
        minimum: number of double backward probes that every sample has had already.
        budget: cap on a sample's mean number of double backward probes, or as much time in sweeps.
        sweeps: ``None`` where there are none.
    """
    num, layers = variances[:, :-1].shape
    shares = variances[:, :-1].sum(0)
    shares = shares / shares.sum() if shares.any() else np.full(layers, 1 / layers)
    own, separate, joint, weight = variances[:, :-1], np.zeros(num, bool), np.zeros(num, int), np.zeros(num)
    if sweeps is None:
        counts = allocate(variances, targets, minimum=minimum, budget=budget)
        return Plan(counts, separate, joint, weight, shares, np.sqrt(own))
    # Separate sweeps for the samples of which they save time, at the gain where it is needed most.
    wanted = targets[:-1]
    counts = allocate(own, wanted, minimum=minimum, budget=budget)
    alone = variances[:, -1]
    if sweeps.ratios is not None and counts.max() > max(FEW, minimum):
        ratios, cost = sweeps.ratios()
        need = np.divide(own.sum(0), wanted**2, out=np.zeros(layers), where=wanted > 0)
        gain, cost = float((need * ratios).sum() / need.sum()), cost / BACKWARD
        separate = counts >= _worth_separate_sweeps(gain, cost)
        own, before = own * ratios, own
        if separate.any():
            mixed = np.where(separate[:, None], own, before)
            counts = allocate(
                mixed,
                wanted,
                minimum=np.where(separate, 2, minimum),
                budget=budget,
                costs=np.where(separate, cost, 1.0),
            )
            alone = np.where(separate, own.sum(1), alone)
    if targets[-1] > 0 and (alone / counts).sum() > (targets[-1] * num) ** 2:
        # Of a network with one curved layer nothing is left to chance in a joint sweep: any draw will do.
        variance = variances[:, -1] * max(sweeps.joint(), 1e-6)
        # In units of joint draws, what the sum over the layers knows already.
        have = counts * np.divide(variance, alone, out=np.ones(num), where=(alone > 0) & (variance > 0))
        joint = _joint_draws(np.sqrt(variance), have, (targets[-1] * num) ** 2, budget * BACKWARD / JOINT)
        weight = joint / (joint + have)
    return Plan(counts, separate, joint, weight, shares, np.sqrt(own))


def _worth_separate_sweeps(gain: float, cost: float) -> float:
    r"""Double backward probes of a sample for which separate sweeps, two of them at least, are the better buy.

    Where variance :math:`V / k` and time k weigh the same, at the best number k of double backward probes, two sweeps
    with variance :math:`g V / 2` and time 2 c are better if :math:`g k^2 / 2 + 2 c < 2 k`; more than two are always if
    :math:`g c < 1`.
    """
    return 2 * cost / (1 + np.sqrt(1 - gain * cost)) if gain * cost < 1 else np.inf


def _joint_draws(spread: np.ndarray, have: np.ndarray, wanted: float, most: float) -> np.ndarray:
    """Draws ``[S]`` in proportion to the spread, less what there is, for a sum of variances that is wanted.

    They are powers of two.
    """

    def counts(factor: float) -> np.ndarray:
        lacking = np.maximum(factor * spread - have, 0.0)
        powers = 2.0 ** np.round(np.log2(np.maximum(lacking, 1)))
        return np.where(lacking >= WORTH, powers, 0.0)

    def reaches(factor: float) -> bool:
        left = np.divide(spread**2, have + counts(factor), out=np.zeros(len(spread)), where=spread > 0)
        return left.sum() <= wanted

    high = max(spread.sum() / wanted, 1e-300)
    while not reaches(high) and counts(high).mean() <= most:
        high *= 1.2
    low = high / 64
    for _ in range(20):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if reaches(middle) else (middle, high)
    found = counts(high)
    while found.mean() > most:
        high *= 0.95
        found = counts(high)
    return found.astype(int)
