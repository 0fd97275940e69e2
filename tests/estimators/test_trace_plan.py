"""Which probes: those of the tape, separate sweeps of hard samples, joint sweeps for the total."""

import numpy as np
import pytest
from seeded import rng

from genbound.estimators.allocation import allocate
from genbound.estimators.draw_spread import Bounds
from genbound.estimators.draws import Moments
from genbound.estimators.trace_plan import BACKWARD, JOINT, Plan, Sweeps, control_passes, plan_probes, with_total

JOINT_RATIO = 0.7


def probes(layer_target, total_target, ratio=0.05, cost=20.0, budget=1e9):
    """A hundred samples, ten of them hard, eight layers whose joint probes have mostly cross-layer noise."""
    spread = np.where(np.arange(100) < 10, 100.0, 1.0)[:, None]
    variances = np.concatenate([np.ones((1, 8)), [[8.0]]], 1) * spread**2
    targets = np.append(np.full(8, layer_target), total_target)
    sweeps = None if ratio is None else Sweeps(lambda: (np.full(8, ratio), cost), lambda: JOINT_RATIO)
    return variances, targets, plan_probes(variances, targets, 2, budget, sweeps)


def test_hard_samples_are_swept_layer_by_layer():
    variances, targets, plan = probes(0.2, 1e9)
    assert plan.separate[:10].all() and not plan.separate[10:].any() and not plan.joint.any()
    each = variances[:, 0] * np.where(plan.separate, 0.05, 1.0) / plan.counts
    assert np.sqrt(each.sum()) / 100 <= targets[0]
    assert not probes(0.2, 1e9, ratio=0.5)[2].separate.any()  # where that saves nothing
    assert not probes(0.2, 1e9, ratio=None)[2].separate.any()  # and where there are no sweeps


@pytest.mark.parametrize("budget", [4, 8, 16, 64])
def test_separate_sweeps_for_some_are_no_worse_than_for_none_or_all(budget):
    """Within the same budget; the sizes of the samples span four decades."""
    spread = rng(4).lognormal(sigma=1.5, size=(400, 1))
    variances = np.concatenate([np.ones((1, 8)), [[8.0]]], 1) * spread**2
    targets, ratio, cost = np.append(np.full(8, 1e-3), 0.0), 0.05, 20.0

    def error(counts, separate):
        assert (np.where(separate, cost / BACKWARD, 1.0) * counts).mean() <= budget
        return (variances[:, 0] * np.where(separate, ratio, 1.0) / counts).sum()

    plan = plan_probes(variances, targets, 2, budget, Sweeps(lambda: (np.full(8, ratio), cost), lambda: 1.0))
    mixed, every = error(plan.counts, plan.separate), np.ones(400, bool)
    one = {"minimum": 2, "budget": budget}
    assert mixed <= 1.02 * error(allocate(variances[:, :-1], targets[:-1], **one), ~every)
    alone = allocate(ratio * variances[:, :-1], targets[:-1], **one, costs=np.full(400, cost / BACKWARD))
    if budget > 2.5 * cost / BACKWARD:  # what two sweeps of all take
        assert mixed <= 1.02 * error(alone, every)


def test_what_the_total_lacks_is_swept_jointly():
    variances, targets, plan = probes(1e9, 0.2)
    assert (plan.counts == 2).all() and plan.joint[:10].min() > plan.joint[10:].max()
    # The mean of both with these weights, for the samples where there are both.
    w, joint = plan.weight, np.maximum(plan.joint, 1)
    each = variances[:, -1] * (JOINT_RATIO * w**2 / joint + (1 - w) ** 2 / plan.counts)
    assert 0.8 * targets[-1] < np.sqrt(each.sum()) / 100 <= 1.0001 * targets[-1]
    assert plan.shares.sum() == pytest.approx(1)
    assert not probes(1e9, 0.2, ratio=None)[2].joint.any()
    assert probes(1e9, 0.2, budget=4)[2].joint.mean() <= 4 * 3.5 / 1.3
    assert plan.passes() == pytest.approx(3.5 * 2 + 1.3 * plan.joint.mean())
    # With a single curved layer the mean of its own noise is all there is: a joint sweep has no spread.
    exact = plan_probes(variances, targets, 2, 1e9, Sweeps(None, lambda: 0.0))
    assert (exact.joint[:10] >= 2).all() and exact.joint.sum() < plan.joint.sum()
    for column in (-1, slice(None)):  # of the sum alone, and of everything
        variances[5, column] = 0
        plan = plan_probes(variances, targets, 2, 1000, Sweeps(None, lambda: 0.5))
        assert not plan.joint[5] and not plan.weight[5]


def test_own_probes_have_a_say_in_the_number_of_joint_sweeps_and_in_nothing_else():
    """Where they tell that some of the hard samples are harder, these have more; weights stay, so nothing is biased."""
    variances, targets, before = probes(1e9, 0.2)
    own = variances[:, -1] * np.where(np.arange(100) < 5, 16.0, 1.0)
    sweeps = Sweeps(None, lambda: JOINT_RATIO)
    plan = plan_probes(variances, targets, 2, 1e9, sweeps, own)
    for name in ("counts", "separate", "vectors", "weight", "shares"):
        assert (getattr(plan, name) == getattr(before, name)).all()
    assert ((plan.joint > 0) == (before.joint > 0)).all()
    assert (plan.joint[:5] >= 2 * plan.joint[5:10]).all()
    known = JOINT_RATIO * (variances[:, -1] + own) / 2
    w = plan.weight
    error = np.sqrt((known * (w**2 / np.maximum(plan.joint, 1) + (1 - w) ** 2 / plan.counts)).sum()) / 100
    assert 0.8 * targets[-1] < error <= 1.1 * targets[-1]
    steps = np.log2(plan.joint[plan.joint > 0]) % 1
    assert (np.minimum(steps, np.abs(steps - np.log2(1.5))) < 1e-9).all()


def test_what_samples_without_joint_sweeps_leave_is_not_made_up_for_by_others():
    """Their own probes tell of more than is wanted of all: no number of sweeps of the ten hard samples reaches that."""
    variances = np.where(np.arange(2000) < 10, 100.0, 1.0)[:, None] * np.append(np.ones(8), 8.0)
    left = variances[10:, -1].sum() / 2
    targets = np.append(np.full(8, 1e9), np.sqrt(1.1 * left) / 2000)
    sweeps = Sweeps(None, lambda: JOINT_RATIO)
    before = plan_probes(variances, targets, 2, 8, sweeps)
    assert (before.joint[:10] > 0).all() and not before.joint[10:].any()
    own = variances[:, -1] * np.where(np.arange(2000) < 10, 1.0, 1.5)
    assert (plan_probes(variances, targets, 2, 8, sweeps, own).joint == before.joint).all()


def test_controls_spare_the_hard_samples_joint_sweeps():
    """Time with controls that leave a fifth of the variance against that without, at the same error."""
    variances, targets, plain = probes(1e9, 0.2)
    asked, left_by = [], {1: 0.25, 4: 0.2, 8: 0.2}

    def controls():
        asked.append(True)
        return left_by

    def planned(trial, of=controls):
        return plan_probes(variances, targets, 2, 1e9, Sweeps(None, lambda: JOINT_RATIO, of, trial))

    plan = planned(10.0)
    assert asked and (plan.vectors[:10] == 4).all() and (plan.vectors[10:] == 1).all()
    w, joint = plan.weight, np.maximum(plan.joint, 1)
    left = JOINT_RATIO * np.array([left_by[int(k)] for k in plan.vectors])
    error = np.sqrt((variances[:, -1] * (left * w**2 / joint + (1 - w) ** 2 / plan.counts)).sum()) / 100
    assert 0.75 * targets[-1] < error <= 1.0001 * targets[-1]  # counts are powers of two
    assert plan.passes() < 0.6 * plain.passes()
    assert plan.passes() == pytest.approx((3.5 * plan.counts + 1.3 * plan.joint + control_passes(plan.vectors)).mean())
    # Nothing is tried where little is ahead, or taken where it does not pay.
    dear = planned(JOINT * plain.joint.sum())
    assert len(asked) == 1 and not dear.vectors.any() and (dear.joint == plain.joint).all()
    none = planned(10.0, lambda: {1: 1.5, 8: 0.99})
    assert not none.vectors.any() and (none.joint == plain.joint).all()


def test_the_joint_draws_correct_the_layers_without_a_bias_and_their_errors_are_right():
    """Many rounds of a plan's draws around known traces: what they are combined to, and what is said of its spread."""
    source, traces = rng(5), np.array([[1.0, -2.0, 4.0], [0.5, 0.0, 0.0]])  # two samples, three layers
    counts, joint, shares = np.array([3, 5]), np.array([4, 0]), np.array([0.5, 0.3, 0.2])
    plan = Plan(counts, np.zeros(2, bool), joint, np.zeros(2, int), np.array([0.6, 0.0]), shares, np.ones((2, 3)))
    bounds = Bounds(np.array([[1.0, 1.0, 1.0, 3.0]] * 2), 2, np.zeros(2, bool))
    found, said = [], []
    for _ in range(4000):
        own, together = Moments.empty(2, 4), Moments.empty(2, 1)
        for draw in range(5):
            rows = np.flatnonzero(draw < counts)
            own.add(rows, plan.less_joint(traces[rows] + source.normal(size=(len(rows), 3)), rows))
        for _ in range(4):
            together.add(np.array([0]), traces[:1].sum(1, keepdims=True) + 0.2 * source.normal(size=(1, 1)))
        one = plan.combine(own, together.mean[:, 0], together.squares[:, 0], bounds)
        assert one.samples[:, :-1].sum(1) == pytest.approx(one.samples[:, -1])  # the layers add up to the total
        found.append(one.samples)
        said.append(one.noise)
    mean, variance = np.mean(found, 0), np.var(found, 0, ddof=1)
    assert (np.abs(mean - with_total(traces)) <= 4 * np.sqrt(variance / len(found))).all()
    assert np.mean(said, 0) == pytest.approx(variance, rel=0.1)
