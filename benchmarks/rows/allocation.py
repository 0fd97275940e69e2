r"""Draws of ``hessian_trace`` against Neyman's optimum.

With a standard deviation :math:`s_i` of one joint sweep of sample i, no allocation of draws has a smaller variance V of
the sum over the samples than :math:`m_i \propto s_i`, which takes :math:`(\sum_i s_i)^2 / V` draws. Taken are the draws
of a run, in the time of joint sweeps: with every sample's first probes, the further products of those that may rule the
error, and the controls of samples that have one. A pilot is not counted. The variances that the optimum is made of are
those of many further draws.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import torch
from torch import nn

import genbound
from benchmarks.rows.row import Row, row
from genbound.estimators.trace_plan import BACKWARD, JOINT, Plan
from genbound.quantities import hessian_trace
from genbound.quantities.remainder_probes import Probes

TRUE = 1024  # draws of every sample that its variance is known from: to 4 %, and the sum to 1 %
SEEDS, ERROR = 5, 0.0005  # relative, of the total; at 1 % every sample's first probes alone are more than the optimum


def small_network(num: int = 96) -> genbound.Problem:
    """Fitted to nine tenths of its labels, so that some samples are much harder than others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3)).double()
        init = {name: p.detach().clone() for name, p in net.named_parameters()}
        x, y = torch.randn(num, 8).double(), torch.arange(num) % 3
        x[:, :3] += 2 * nn.functional.one_hot(y, 3)
        y = torch.where(torch.rand(num) < 0.1, (y + 1) % 3, y)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return genbound.Problem(net, init, (x, y))


def against_optimum(problem: genbound.Problem, seed: int, deviations: np.ndarray) -> tuple[float, float]:
    """Time of the draws of a run over that of Neyman's optimum for the error that it has.

    Args:
        problem: what is measured.
        seed: of the run.
        deviations: standard deviation of a joint sweep of every sample ``[N]``, by how much it counts.

    Returns:
        The ratio for all that was drawn, and for the joint sweeps among the samples that have some.
    """
    made: list[tuple[Plan, int]] = []

    def planned(*arguments) -> Plan:
        *_, bounds, _ = arguments
        made.append((plan_remainder(*arguments), int(bounds.ruling.sum())))
        return made[-1][0]

    plan_remainder = hessian_trace.plan_remainder
    options = {"total_sem": ERROR, "layer_sem": 10.0, "exact_products": 0, "small_probes": 4096, "max_probes": 4096}
    with mock.patch.object(hessian_trace, "plan_remainder", planned):
        results = genbound.evaluate(problem, ["hessian_trace"], seed, options={"hessian_trace": options})
    (plan, ruling), num = made[0], problem.num_samples
    error = num * results.quantities["hessian_trace"]["total"]["sem"]  # of the sum: the value is a mean
    taken = num * plan.passes() + 2 * BACKWARD * ruling  # the first probes are among the plan's
    own, joint = deviations[plan.joint > 0], plan.joint[plan.joint > 0]
    allocated = joint.sum() * (own**2 / joint).sum() / own.sum() ** 2
    return taken / (JOINT * (deviations.sum() / error) ** 2), float(allocated)


def true_deviations(problem: genbound.Problem, draws: int = TRUE) -> np.ndarray:
    """Standard deviation of a joint sweep of every sample ``[N]``, from draws that no run has."""
    curved = np.array([not layer.positive_semidefinite for layer in problem.layers])
    joint = Probes(problem, 12345, curved).joint("of the truth")
    found = joint.moments(list(range(problem.num_samples)), [draws] * problem.num_samples)
    return np.sqrt(found.squares[:, 0] / (draws - 1))


def small_allocation() -> Iterator[Row]:
    """On a small network, over several seeds."""
    yield allocation_row("a small network, 96 samples", small_network(), range(SEEDS), TRUE)


def allocation_row(label: str, problem: genbound.Problem, seeds: range, draws: int) -> Row:
    deviations = true_deviations(problem, draws)
    found = [against_optimum(problem, seed, deviations) for seed in seeds]
    (whole, low, high), (joint, _, _) = (_spread(values) for values in zip(*found, strict=True))
    return row(
        f"hessian_trace: draws against Neyman's optimum, {label}", f"{whole:.2f}", "<= 1.2", whole <= 1.2,
        f"median of {len(found)} seeds, {low:.2f} to {high:.2f}, at a total to {100 * ERROR:.2g} %, in the time of "
        f"joint sweeps with the first probes; {joint:.2f} for the joint sweeps alone, by what other samples and a "
        f"sample's own first products tell of its spread; true variances of {draws} draws a sample, the largest "
        f"deviation {deviations.max() / deviations.mean():.0f} times the mean", ratios=found,
    )  # fmt: skip


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and largest."""
    return statistics.median(values), min(values), max(values)
