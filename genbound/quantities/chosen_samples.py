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
from genbound.quantities.base import Context

NAMES = ("member", "stratum", "stratum_size")  # of the arrays that a choice is stored as


class Round:
    """A context whose stages have names of their own in each round of an estimate whose samples grow.

    Args:
        context: of the measurement.
        step: number of the round.
        options: in place of the context's.
        name: of what is measured beside the round's own stages.
    """

    def __init__(self, context: Context, step: int, options: Any = None, name: str = "again"):
        self.seed, self.measured, self.confusion = context.seed, context.measured, context.confusion
        self.options = context.options if options is None else options
        self._context, self._suffix = context, f" {name} {step}" if step else ""

    def map(self, stage: str, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """As of the context."""
        return self._context.map(f"{stage}{self._suffix}", items, function)


def chosen_problem(problem: Problem, losses: Measured, num: int) -> Problem:
    """The problem with ``num`` samples measured that are chosen by size; itself where all of them are.

    Also itself where noise is shared by blocks of samples, whose contributions are not known one by one.
    """
    total = len(problem.data)
    if num >= total:
        return problem if problem.num_samples == total else problem.over_all()
    if num < LEAST or not can_move_rows(problem):
        return problem
    numbers = torch.rand(total, generator=generator(problem.sample_seed, "choice of samples"), dtype=torch.float64)
    return problem.measured_on(choose_by_size(losses.data["size"], num, numbers.numpy()))


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
    return {} if choice is None else dict(zip(NAMES, (choice.members, choice.strata, choice.sizes), strict=True))


def same_samples(problem: Problem, measured: Measured) -> Problem:
    """The problem with the samples that another quantity was measured on."""
    if "member" in measured.data:
        return problem.measured_on(Choice(*(measured.data[name] for name in NAMES)))
    num = measured.summary["total"]["num_samples"]
    return problem if num == problem.num_samples else problem.over_all()


def said_of(problem: Problem) -> dict[str, str]:
    """What the summary says of the choice: how it was made, and a digest of the samples; empty where there is none."""
    if problem.choice is None:
        return {}
    samples = repr(sorted(problem.indices)).encode()
    return {"choice": "size", "samples_sha256": hashlib.sha256(samples).hexdigest()}
