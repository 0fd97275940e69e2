r"""How the probes of a trace are spent: which kind for which sample, and how many.

A *probe* is a random direction z with :math:`E[zz^\top] = I`, so that :math:`z^\top R z` is an unbiased draw of the
trace of R, here a sample's remainder. Three kinds of probe see it (:mod:`genbound.curvature.traces`):

* A *double backward* probe gives all layers at once, with cross-layer noise.
* *Separate* sweeps give every layer without that noise, at half a forward pass a layer.
* A *joint* sweep gives the sum over the layers alone, at a forward pass.

The layers' own errors are met by double backward probes for the many samples with little spread. For the few with
much spread separate sweeps are cheaper; which samples these are follows from the spread that a pilot found. What the
total then lacks is met by joint sweeps.

The joint draws correct the layers as well, so that they still add up to the total. Let :math:`x_i` be a draw of layer
i, and T the mean of the joint draws of a sample. The layers of that sample become :math:`x_i + w\,b_i\,(T - \sum_j
x_j)`, with a weight w of the sample and shares b of the layers. They are fixed before T is drawn, from all samples
together. So the result is unbiased, whatever they are. It is best if w is T's share of the information, and b the
layers' shares of the variance.

A *control* (:mod:`genbound.curvature.krylov_control`) takes a few products of one sample and spares some of its joint
draws. How much of their variance controls of several sizes leave is tried on the hardest samples, where there is much
to be spared; then a sample gets the one, if any, with which its draws are cheapest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from genbound.estimators.allocation import allocate
from genbound.estimators.draw_spread import Bounds
from genbound.estimators.draws import Moments
from genbound.estimators.estimate import Sampled

# Time of a probe, in forward passes: a double backward one and a joint sweep.
BACKWARD, JOINT = 3.5, 1.3
RECORDED = 2.5  # time of a pass of one sample whose derivatives are taken
PAYS = 0.7  # most of a draw's variance that a control may leave: few draws tell, and what leaves more may leave all
TRIAL_PAYS = 4  # times its own time: what joint draws take before it is tried whether a control spares them
# Where counts of 2^k, 1.5 2^k and 2^(k+1) meet: half way between them, in logarithms to the base of two.
FIRST_STEP, SECOND_STEP = math.log2(1.5) / 2, (math.log2(1.5) + 1) / 2
WORTH = 2  # joint draws of a sample for which recording a sweep pays
FEW = 8  # double backward probes of a sample, up to which nobody asks for separate sweeps


def with_total(values: np.ndarray) -> np.ndarray:
    """``[..., L]`` with the sum over the layers as one more column, ``[..., L + 1]``."""
    return np.concatenate([values, values.sum(-1, keepdims=True)], -1)


@dataclass(frozen=True)
class Sweeps:
    """What is known of sweeps, measured when it is asked for.

    Attributes:
        ratios: ``() -> (ratios [L], cost)``: each layer's variance in separate sweeps over that in double backward
            probes, and the forward passes that one separate sweep of all layers takes. ``None`` if separate sweeps
            are not thought of.
        joint: ``() -> ratio``: the variance of a joint sweep over that of the sum of a double backward probe.
        controls: ``() -> {vectors: ratio}``: the variance that controls of so many vectors leave of a joint sweep.
        trial: forward passes that it takes to know ``controls``.
    """

    ratios: Callable[[], tuple[np.ndarray, float]] | None
    joint: Callable[[], float]
    controls: Callable[[], Mapping[int, float]] = dict
    trial: float = math.inf


def control_passes(vectors: np.ndarray) -> np.ndarray:
    """Time of controls of so many vectors in forward passes ``[S]``; nothing for none."""
    return np.where(vectors > 0, RECORDED + BACKWARD * vectors, 0.0)


@dataclass(frozen=True)
class Plan:
    """How the probes of ``S`` samples and ``L`` layers are spent.

    Attributes:
        counts: probes of the layers ``[S]``, separate sweeps where ``separate [S]``, else double backward ones.
        joint: joint sweeps ``[S]``.
        vectors: of the control of a sample's joint sweeps, 0 where there is none ``[S]``.
        weight: of the joint draws of each sample ``[S]``.
        shares: of the layers in what the joint draws correct ``[L]``.
        deviation: expected standard deviation of a probe of each layer ``[S, L]``, in the unit of the trace. Where
            separate sweeps were compared, it is that of one of them: of the layer's own block alone.
    """

    counts: np.ndarray
    separate: np.ndarray
    joint: np.ndarray
    vectors: np.ndarray
    weight: np.ndarray
    shares: np.ndarray
    deviation: np.ndarray

    def passes(self) -> float:
        """Time of a sample's double backward probes and joint sweeps in forward passes, on the average."""
        own = BACKWARD * self.counts * ~self.separate
        return float((own + JOINT * self.joint + control_passes(self.vectors)).mean())

    def less_joint(self, draws: np.ndarray, samples: np.ndarray) -> np.ndarray:
        r"""Draws of the layers without what the joint draws stand for, :math:`x_i - w\,b_i \sum_j x_j`, and their sum.

        Args:
            draws: ``[n, ..., L]``.
            samples: whose they are ``[n]``.

        Returns:
            ``[n, ..., L + 1]``.
        """
        weight = self.weight[samples].reshape(-1, *[1] * (draws.ndim - 1))
        return with_total(draws - weight * self.shares * draws.sum(-1, keepdims=True))

    def combine(self, own: Moments, joint_mean: np.ndarray, joint_squares: np.ndarray, bounds: Bounds) -> Sampled:
        r"""Every sample's traces from all draws, with :math:`w\,b_i\,T` put back.

        Args:
            own: of the draws :meth:`less_joint` ``[S, L + 1]``.
            joint_mean: T, the mean of each sample's joint draws ``[S]``.
            joint_squares: sum of their squared deviations from it ``[S]``.
            bounds: of the spread of double backward probes.

        Returns:
            Of ``[S, L + 1]``, with the total in the last column.
        """
        shares = np.append(self.shares, 1.0)
        values = own.mean + (self.weight * joint_mean)[:, None] * shares
        left = bounds.less_joint(self.weight[:, None] * self.shares)
        variances, spread = np.zeros_like(own.mean), np.zeros(own.mean.shape[1])
        for kind in (self.separate, ~self.separate):
            rows = np.flatnonzero(kind)
            each, freedom = left.variances(own.count[rows], own.squares[rows], rows)
            variances[rows] = each / own.count[rows, None]
            spread += (variances[rows] ** 2 / freedom).sum(0)
        together = np.zeros_like(variances)
        for several in np.unique(self.vectors):  # a control leaves less of what the bounds are of
            rows = np.flatnonzero((self.vectors == several) & (self.joint > 1))
            each, freedom = bounds.variances(self.joint[rows], joint_squares[rows, None], rows)
            together[rows] = self.weight[rows, None] ** 2 * each / self.joint[rows, None] * shares**2
            spread += (together[rows] ** 2 / freedom).sum(0)
        return Sampled.of(values, variances + together, spread)


class LayerProbes(NamedTuple):
    """The part of a plan that looks at the layers alone.

    Attributes:
        counts: probes of each sample ``[S]``.
        separate: whether they are separate sweeps ``[S]``.
        variances: of one probe, for each layer ``[S, L]``.
        total: variance that the sum over the layers has in one probe of the sample's kind ``[S]``.
    """

    counts: np.ndarray
    separate: np.ndarray
    variances: np.ndarray
    total: np.ndarray


def plan_probes(
    variances: np.ndarray, targets: np.ndarray, minimum: int, budget: int, sweeps: Sweeps | None = None,
    own: np.ndarray | None = None,
) -> Plan:  # fmt: skip
    """Probes for the wanted standard errors.

    Args:
        variances: of one double backward probe ``[S, L + 1]``, the last column that of the sum over the layers.
        targets: wanted standard errors of the means over the samples ``[L + 1]``; columns with 0 are ignored.
        minimum: number of double backward probes that every sample has had already.
        budget: cap on a sample's mean number of double backward probes, or as much time in sweeps.
        sweeps: ``None`` where there are none.
        own: what a sample's own first probes tell of the sum's variance ``[S]``, where it may have a say.
    """
    num, layers = variances[:, :-1].shape
    shares = variances[:, :-1].sum(0)
    shares = shares / shares.sum() if shares.any() else np.full(layers, 1 / layers)
    joint, vectors, weight = np.zeros(num, int), np.zeros(num, int), np.zeros(num)
    if sweeps is None:
        counts = allocate(variances, targets, minimum=minimum, budget=budget)
        probes = LayerProbes(counts, np.zeros(num, bool), variances[:, :-1], variances[:, -1])
    else:
        probes = _probe_layers(variances, targets[:-1], minimum, budget, sweeps)
        if targets[-1] > 0 and (probes.total / probes.counts).sum() > (targets[-1] * num) ** 2:
            joint, vectors, weight = _probe_total(probes, variances[:, -1], targets[-1], budget, sweeps, own)
    return Plan(probes.counts, probes.separate, joint, vectors, weight, shares, np.sqrt(probes.variances))


def _probe_layers(variances: np.ndarray, targets: np.ndarray, minimum: int, budget: int, sweeps: Sweeps) -> LayerProbes:
    """Double backward probes, or separate sweeps for the samples of which they save time."""
    own, total = variances[:, :-1], variances[:, -1]
    counts, separate = allocate(own, targets, minimum=minimum, budget=budget), np.zeros(len(own), bool)
    if sweeps.ratios is None or counts.max() <= max(FEW, minimum):
        return LayerProbes(counts, separate, own, total)
    ratios, passes = sweeps.ratios()
    cost = passes / BACKWARD
    # The gain where it is needed most.
    need = np.divide(own.sum(0), targets**2, out=np.zeros(len(targets)), where=targets > 0)
    gain = float((need * ratios).sum() / need.sum())
    separate = counts >= _worth_separate_sweeps(gain, cost)
    apart = own * ratios
    if separate.any():
        counts = allocate(
            np.where(separate[:, None], apart, own), targets, minimum=np.where(separate, 2, minimum), budget=budget,
            costs=np.where(separate, cost, 1.0),
        )  # fmt: skip
        total = np.where(separate, apart.sum(1), total)
    return LayerProbes(counts, separate, apart, total)


def _probe_total(
    probes: LayerProbes, variances: np.ndarray, target: float, budget: int, sweeps: Sweeps, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joint sweeps for what the total lacks, the vectors of their controls, and the weight of their mean; all ``[S]``.

    ``variances [S]`` are those of the sum over the layers in a double backward probe, ``own [S]`` what the sample's own
    probes tell of them. Those have a say in how many joint sweeps there are of the samples that have some, and in
    nothing else: however many there are, their mean is unbiased, but its weight beside the first probes must not
    depend on these.
    """
    # Of a network with one curved layer nothing is left to chance in a joint sweep: any draw will do.
    ratio = np.full(len(variances), max(sweeps.joint(), 1e-6))
    variance = variances * ratio
    # In units of joint draws, what the sum over the layers knows already.
    known = np.divide(variance, probes.total, out=np.ones(len(variance)), where=(probes.total > 0) & (variance > 0))
    have, wanted, most = probes.counts * known, (target * len(variance)) ** 2, budget * BACKWARD / JOINT
    joint, vectors = _joint_draws(np.sqrt(variance), have, wanted, most), np.zeros(len(variance), int)
    if JOINT * joint.sum() >= TRIAL_PAYS * sweeps.trial:
        vectors, left = _cheapest_controls(joint, sweeps.controls())
        if vectors.any():
            most = max(most - control_passes(vectors).mean() / JOINT, 0.0)
            variance, have, ratio = variance * left, have * left, ratio * left
            joint = _joint_draws(np.sqrt(variance), have, wanted, most)
            vectors = np.where(joint > 0, vectors, 0)
    weight = joint / (joint + have)
    if own is not None and joint.any():
        # What the samples without joint draws leave stays what it was: no number of draws of others makes up for it.
        mixed = np.where(joint > 0, (variance + own * ratio) / 2, variance)
        joint = _joint_draws(np.sqrt(mixed), have, wanted, most, joint > 0)
    return joint, vectors, weight


def _cheapest_controls(joint: np.ndarray, ratios: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """The control of each sample that takes least for the error of so many joint draws, and the variance it leaves.

    Args:
        joint: draws without a control ``[S]``.
        ratios: vectors of a control -> variance that it leaves of a draw.

    Returns:
        Vectors, 0 for none, and ratios, both ``[S]``.
    """
    few = {num: ratio for num, ratio in ratios.items() if ratio <= PAYS}
    nums, left = np.array([0, *few]), np.array([1.0, *few.values()])
    time = control_passes(nums) + JOINT * np.multiply.outer(joint, left)
    best = time.argmin(1)
    return nums[best], left[best]


def _worth_separate_sweeps(gain: float, cost: float) -> float:
    r"""How many double backward probes a sample must have had for separate sweeps, two at least, to be the better buy.

    Let the variance :math:`V / k` and the time k weigh the same at the best number k of double backward probes. Two
    sweeps with variance :math:`g V / 2` and time 2 c are better if :math:`g k^2 / 2 + 2 c < 2 k`. More than two are
    always better if :math:`g c < 1`.

    Args:
        gain: g, variance of a separate sweep over that of a double backward probe.
        cost: c, its time over that of a double backward probe.
    """
    return 2 * cost / (1 + np.sqrt(1 - gain * cost)) if gain * cost < 1 else np.inf


def _joint_draws(
    spread: np.ndarray, have: np.ndarray, wanted: float, most: float, among: np.ndarray | None = None
) -> np.ndarray:
    """Joint draws of each sample ``[S]``, in proportion to the spread, less what there is.

    They are powers of two, or one and a half times such: in a coarser step the optimum is missed by 4 %, in this by 1.

    Args:
        spread: standard deviation of a joint draw ``[S]``.
        have: joint draws that what is known of the sample already is worth ``[S]``.
        wanted: sum of the variances of the samples' means.
        most: cap on the mean number of draws.
        among: samples that have some, and no others ``[S]``; ``None`` leaves that open.
    """

    def counts(factor: float) -> np.ndarray:
        lacking = np.maximum(factor * spread - have, 0.0)
        steps = np.log2(np.maximum(lacking, WORTH))
        low = np.floor(steps)
        rounded = 2.0**low * np.where(steps - low < FIRST_STEP, 1.0, np.where(steps - low < SECOND_STEP, 1.5, 2.0))
        return np.where(lacking >= WORTH if among is None else among, rounded, 0.0)

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
    while found.mean() > most and found.max() > WORTH:
        high *= 0.95
        found = counts(high)
    return found.astype(int)
