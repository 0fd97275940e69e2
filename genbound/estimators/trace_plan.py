r"""How the probes of a trace are spent: which kind for which sample, and how many.

Three kinds of probe see a sample's remainder (:mod:`genbound.curvature.traces`). A *double backward* probe gives all layers at once, with
cross-layer noise. *Separate* sweeps give every layer without that noise, at half a forward pass a layer. A *joint* sweep gives the
sum over the layers alone, at a forward pass. So the layers' own errors are met by double backward probes for the many samples
with little spread and by separate sweeps for the few with much, whichever is cheaper by the spread that a pilot
found, and what the total then lacks is met by joint sweeps.

The joint draws correct the layers as well, so that they still add up: with :math:`x_i` a draw of layer i and T the mean of the joint
draws of a sample, its layers become :math:`x_i + w\,b_i\,(T - \sum_j x_j)` with a weight w of the sample and shares b of the layers, fixed
before the draws: unbiased whatever they are, and best if w is T's share of the information and b the layers' shares of the variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genbound.estimators.allocation import allocate

# Time of a probe, in forward passes: a double backward one and a joint sweep.
BACKWARD, JOINT = 3.5, 1.3
WORTH = 3  # joint draws of a sample for which recording a sweep pays


@dataclass(frozen=True)
class Plan:
    """How the probes of ``S`` samples and ``L`` layers are spent.

    Attributes:
        counts: probes of the layers ``[S]``, separate sweeps where ``separate [S]``, else double backward ones.
        joint: joint sweeps ``[S]``.
        weight: of the joint draws of each sample ``[S]``.
        shares: of the layers in what the joint draws correct ``[L]``.
        deviation: expected standard deviation of a probe of each layer ``[S, L]``, of its own block alone where that is known.
    """

    counts: np.ndarray
    separate: np.ndarray
    joint: np.ndarray
    weight: np.ndarray
    shares: np.ndarray
    deviation: np.ndarray


def plan_probes(
    variances: np.ndarray, targets: np.ndarray, minimum: int, budget: int, *, ratios: np.ndarray | None = None,
    separate_cost: float = np.inf,
) -> Plan:  # fmt: skip
    """Probes for the wanted standard errors.

    Args:
        variances: of one double backward probe ``[S, L + 1]``, the last column that of the sum over the layers.
        targets: wanted standard errors of the means over the samples ``[L + 1]``; columns with 0 are ignored.
        minimum: least number of probes of a sample.
        budget: cap on a sample's mean number of double backward probes, or as much time in sweeps.
        ratios: each layer's variance in separate sweeps over that in double backward probes ``[L]``; ``None`` where there are no
            sweeps at all.
        separate_cost: of one separate probe of all layers, in forward passes.
    """
    num, layers = variances[:, :-1].shape
    shares = variances[:, :-1].sum(0)
    shares = shares / shares.sum() if shares.any() else np.full(layers, 1 / layers)
    nothing = np.zeros(num, dtype=int)
    if ratios is None:
        counts = allocate(variances, targets, minimum=minimum, budget=budget)
        return Plan(counts, nothing.astype(bool), nothing, np.zeros(num), shares, np.sqrt(variances[:, :-1]))
    # Separate sweeps for the samples of which they save time, at the gain where it is needed most.
    counts = allocate(variances[:, :-1], targets[:-1], minimum=minimum, budget=budget)
    need = np.divide(variances[:, :-1].sum(0), targets[:-1] ** 2, out=np.zeros(layers), where=targets[:-1] > 0)
    gain = float((need * ratios).sum() / need.sum()) if need.any() else 1.0
    cost = separate_cost / BACKWARD
    separate = (counts * gain >= 2) & (gain * cost < 1)
    if separate.any():
        mixed = np.where(separate[:, None], variances[:, :-1] * ratios, variances[:, :-1])
        counts = allocate(mixed, targets[:-1], minimum=minimum, budget=budget, costs=np.where(separate, cost, 1.0))
    # In units of joint draws, what the sum over the layers knows already.
    own = np.sqrt(variances[:, :-1] * ratios)
    alone = (own**2).sum(1)
    have = np.where(separate, variances[:, -1] / np.maximum(alone, 1e-300), 1.0) * counts
    if targets[-1] <= 0 or (variances[:, -1] / have).sum() <= (targets[-1] * num) ** 2:
        return Plan(counts, separate, nothing, np.zeros(num), shares, own)
    best = allocate(variances[:, -1:], targets[-1:], minimum=1, budget=budget * BACKWARD / JOINT)
    lacking = np.maximum(best - have, 0)
    joint = np.where(lacking >= WORTH, 2 ** np.ceil(np.log2(np.maximum(lacking, 1)) - 1e-9), 0).astype(int)
    return Plan(counts, separate, joint, joint / (joint + have), shares, own)
