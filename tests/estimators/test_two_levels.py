"""Cheap draws that are put right by a few exact ones: against closed forms and the dense remainder."""

import numpy as np
import pytest
import torch
from cases import CASES

import genbound
from genbound.curvature.half_precision import half_is_faster
from genbound.curvature.sweep import Sweep
from genbound.curvature.traces import dense_remainder_trace
from genbound.estimators.two_levels import two_level_moments
from genbound.quantities import remainder_probes
from genbound.quantities.remainder_probes import Probes


def test_a_constant_error_is_taken_off_altogether():
    exact = np.array([[1.0, 3.0, 2.0, 6.0], [0.0, 0.0, 4.0, 4.0]])
    gaps = np.full_like(exact, np.nan)
    gaps[0, 0], gaps[1, :2] = -5.0, -7.0
    mean, squares = two_level_moments(exact + np.array([[5.0], [7.0]]), gaps)
    assert mean == pytest.approx(exact.mean(1))
    spread = exact.var(1, ddof=1)
    variance = spread / 4 + np.array([25 / 1, 49 / 2]) + 2 * np.sqrt(spread) * np.array([5, 7]) / 4
    assert squares == pytest.approx(variance * 4 * 3)


def test_mean_and_variance_by_simulation():
    """The gap depends on the draw: 4,000 samples with 8 cheap draws and 1 exact one."""
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((4000, 8)) + 1
    cheap = 0.9 * exact + 0.3 + 0.1 * rng.standard_normal(exact.shape)
    gaps = np.full_like(exact, np.nan)
    gaps[:, 0] = (exact - cheap)[:, 0]
    mean, squares = two_level_moments(cheap, gaps)
    assert abs(mean.mean() - 1) < 4 * mean.std() / np.sqrt(4000)
    stated = (squares / 56).mean()
    assert mean.var() < stated < 2 * mean.var()  # too large by the squared bias and by the bound of the covariance


def joint(problem, half, num=64, vectors=0):
    curved = np.array([bool(layer.curved_by) for layer in problem.layers])
    positions = list(range(problem.num_samples))
    counts, vectors = np.full(len(positions), num), np.full(len(positions), vectors)
    return Probes(problem, 0, curved).joint_moments("joint", positions, counts, vectors, half)


@pytest.mark.parametrize("vectors", [0, 2])
@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu"])
def test_draws_in_half_precision_have_the_mean_of_the_dense_remainder(name, vectors):
    problem = CASES[name].problem(batch_size=4)
    exact = torch.cat([dense_remainder_trace(tape) for tape in problem.tapes(range(problem.num_samples))])
    order = [p for tape in problem.tapes(range(problem.num_samples)) for p in tape.positions]
    truth = np.zeros(len(order))
    truth[order] = exact.sum(1).numpy()
    single, means = CASES[name].problem(batch_size=4, dtype=torch.float32), []
    assert single.indices == problem.indices
    for half in (False, True):
        found = joint(single, half, vectors=vectors)
        means.append(found.mean)
        sem = np.sqrt(found.squares[:, 0] / (64 * 63))
        errors = (found.mean[:, 0] - truth) / np.maximum(sem, 1e-9)
        assert np.abs(errors).max() < 4.5 and (errors**2).mean() < 2
    assert not np.allclose(*means, rtol=1e-5) and np.allclose(*means, rtol=0.1, atol=0.05 * np.abs(truth).max())


def test_a_wrong_half_precision_is_put_right(monkeypatch):
    """As where bfloat16 loses everything: the same random numbers, and so nearly the same mean."""
    problem = CASES["mlp_gelu"].problem(batch_size=2)
    right, taken = joint(problem, False), Sweep.mean_remainder
    monkeypatch.setattr(
        Sweep, "mean_remainder", lambda self, us, half=False: taken(self, us) + (100.0 if half else 0.0)
    )
    wrong = joint(problem, True)
    assert wrong.mean == pytest.approx(right.mean, rel=1e-9)
    assert (wrong.squares > right.squares).all(), "what is put right is an error of its own"


def test_it_is_asked_for_or_found_out(monkeypatch):
    assert half_is_faster(torch.device("cpu")) in (True, False)
    problem = CASES["mlp_gelu"].problem()
    asked = []
    taken = Probes.joint_moments
    monkeypatch.setattr(Probes, "joint_moments", lambda self, *a: asked.append(a[-1]) or taken(self, *a))
    monkeypatch.setattr(remainder_probes, "half_is_faster", lambda device: True)
    for sweeps, expected in (("auto", False), ("full", False), ("half", True)):  # auto: small, and in float64
        genbound.measure(problem, "hessian_trace", exact_products=0, sweeps=sweeps, total_sem=0.001, small_probes=8)
        assert asked.pop() is expected


def test_a_run_that_goes_on_keeps_its_precision(monkeypatch, tmp_path):
    """What is faster is timed once for all processes and calls of a run: else they would not have the same draws."""
    problem = CASES["mlp_gelu"].problem(dtype=torch.float32)
    asked, answers = [], [True]
    taken = Probes.joint_moments
    monkeypatch.setattr(remainder_probes, "LARGE", 0)
    monkeypatch.setattr(remainder_probes, "half_is_faster", lambda device: answers.pop())

    def stopped(self, *a):
        asked.append(a[-1])
        if len(asked) == 1:
            raise KeyboardInterrupt
        return taken(self, *a)

    monkeypatch.setattr(Probes, "joint_moments", stopped)
    options = {"hessian_trace": {"exact_products": 0, "total_sem": 0.001, "small_probes": 8}}
    with pytest.raises(KeyboardInterrupt):
        genbound.evaluate(problem, ["hessian_trace"], options=options, out=tmp_path)
    genbound.evaluate(problem, ["hessian_trace"], options=options, out=tmp_path)
    assert set(asked) == {True} and len(asked) > 1
