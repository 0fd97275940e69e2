"""On which samples a mean over all of them is measured: more likely on those that contribute more.

What a sample contributes to a trace, or to the rise of the loss under noise, grows with the norm of its loss's gradient
in the output (:math:`|p - y|` for cross-entropy), which one forward pass tells of all samples.
:mod:`genbound.estimators.choice` says how the samples are drawn, and what their error is. A maximum is none of these
means: it stays with the samples that were drawn alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from genbound.curvature.noise_by_row import can_move_rows
from genbound.estimators.choice import LEAST, Choice, choose_by_size
from genbound.estimators.measured import Measured, Part
from genbound.estimators.random import generator
from genbound.network.problem import Problem
from genbound.quantities.base import Context, State

NAMES = ("member", "stratum", "stratum_size", "stratum_weight")  # of the arrays that a choice is stored as
FIRST = 64  # samples of the first round where an error is asked for
ERROR_SHARE = 0.25  # of what the choice of the samples leaves, that the draws may add
SLACK = 1.05  # times as many samples as are thought to do
TYPICAL = 1.0  # standard deviation of what a chosen sample tells of a mean, relative to it: 100 know it to 10 %


class Round:
    """A context whose stages have names of their own in each round of an estimate whose samples grow.

    Args:
        context: of the measurement.
        step: number of the round.
        options: in place of the context's.
        name: of what is measured beside the round's own stages.
    """

    def __init__(self, context: Context, step: int, options: Any = None, name: str = "again"):
        # Positions of other samples have other random numbers.
        self.seed = generator(context.seed, name, step).initial_seed() if step else context.seed
        self.measured, self.confusion = context.measured, context.confusion
        self.options = context.options if options is None else options
        self._context, self._suffix = context, f" {name} {step}" if step else ""

    def map(self, stage: str, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """As of the context."""
        return self._context.map(f"{stage}{self._suffix}", items, function)

    def reduce(
        self,
        stage: str,
        items: Sequence[Any],
        function: Callable[[Any], Part],
        merge: Callable[[State, Any, Part], State],
        start: State,
    ) -> State:
        """As of the context."""
        return self._context.reduce(f"{stage}{self._suffix}", items, function, merge, start)


def can_choose(problem: Problem) -> bool:
    """Whether samples can be chosen: not where noise is shared by blocks of them, so that none is known by itself."""
    return len(problem.data) > LEAST and can_move_rows(problem)


def chosen_problem(
    problem: Problem, losses: Measured, num: int, step: int = 0, spreads: np.ndarray | None = None
) -> Problem:
    """The problem with ``num`` samples measured that are chosen by size; itself where all of them are.

    Also itself where samples cannot be chosen.

    Args:
        problem: what is measured.
        losses: of all n samples.
        num: samples to choose.
        step: choices of other steps are independent.
        spreads: what they are drawn in proportion to, if that is not the size ``[n]``.
    """
    total = len(problem.data)
    if num >= total:
        return problem if problem.choice is None and problem.num_samples == total else problem.over_all()
    if num < LEAST or not can_choose(problem):
        return problem
    key = "choice of samples" + f" {step}" * bool(step)
    numbers = torch.rand(total, generator=generator(problem.sample_seed, key), dtype=torch.float64)
    return problem.measured_on(choose_by_size(losses.data["size"], num, numbers.numpy(), spreads))


def usual_samples(problem: Problem, error: float) -> float:
    """How many samples a relative error of a mean over all mostly takes, which only the first of them will tell."""
    many, every = (TYPICAL / error) ** 2, len(problem.data)
    return max(many * every / (many + every), float(min(FIRST, every)))


def unforeseen(problem: Problem, options: Any) -> str:
    """What a forecast cannot know where an error is asked for, in a sentence; empty where none is."""
    if not options.error or not can_choose(problem):
        return ""
    num, every = usual_samples(problem, options.error), len(problem.data)
    return (
        f"how many samples an error of {options.error:g} takes is known from the first {FIRST} only; the forecast has "
        f"{num:,.0f} of {every:,}" + ", and up to five times as many were seen" * (num < every)
    )


def data_sem_of(problem: Problem, values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """What the choice of the measured samples adds to their (weighted) mean, ``[...]``.

    Args:
        problem: with the samples that are measured.
        values: of each of them ``[N, ...]``.
        noise: variance of each value's own Monte Carlo noise ``[N, ...]``.
    """
    from genbound.estimators.estimate import data_sem

    if problem.choice is None:
        return data_sem(values, noise, problem.num_data)
    return problem.choice.data_sem(values, noise, problem.num_data)


def as_arrays(problem: Problem) -> dict[str, np.ndarray]:
    """The choice as it is stored, for quantities that are measured on the same samples; empty where there is none."""
    choice = problem.choice
    if choice is None:
        return {}
    return dict(zip(NAMES, (choice.members, choice.strata, choice.sizes, choice.weights), strict=True))


def same_samples(problem: Problem, measured: Measured) -> Problem:
    """The problem with the samples that another quantity was measured on."""
    if "member" in measured.data:
        return problem.measured_on(Choice(*(measured.data[name] for name in NAMES)))
    num = measured.summary["total"]["num_samples"]
    return problem if problem.choice is None and num == problem.num_samples else problem.over_all()


def num_different(problem: Problem) -> int:
    """How many samples are measured, each counted once."""
    return problem.num_samples if problem.choice is None else len(set(problem.indices))


def once(
    problem: Problem, values: np.ndarray, noise: np.ndarray, num_probes: np.ndarray, probe_std: np.ndarray
) -> dict[str, np.ndarray]:
    """The samples' own numbers, those of each once, and where they are chosen its index and weight.

    Args:
        problem: with the N samples that are measured; several rounds may have the same one.
        values: ``[N, L]``.
        noise: their variances ``[N, L]``.
        num_probes: ``[N]``.
        probe_std: ``[N, L]``.
    """
    if problem.choice is None:
        return {"value": values, "sem": np.sqrt(noise), "num_probes": num_probes, "probe_std": probe_std}
    index, place = np.unique(problem.indices, return_inverse=True)
    weight = np.bincount(place, problem.shares)
    part = (problem.shares / weight[place])[:, None]

    def summed(each: np.ndarray) -> np.ndarray:
        found = np.zeros((len(index), *each.shape[1:]))
        np.add.at(found, place, each)
        return found

    return {
        "value": summed(part * values), "sem": np.sqrt(summed(part**2 * noise)),
        "num_probes": summed(num_probes).astype(int), "probe_std": summed(part * probe_std),
        "sample": index, "weight": weight * len(index) / problem.num_samples,
    }  # fmt: skip


def said_of(problem: Problem) -> dict[str, str]:
    """What the summary says of the choice: how it was made, and a digest of the samples; empty where there is none."""
    if problem.choice is None:
        return {}
    samples = repr(sorted(set(problem.indices))).encode()
    return {"choice": "size", "samples_sha256": hashlib.sha256(samples).hexdigest()}
