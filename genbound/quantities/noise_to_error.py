r"""``noise_stability`` with a wanted relative error over all samples, draws and choice of samples together.

First come the samples of ``hessian_trace``, with the control variate. Further ones come in *rounds*, each at those
sigmas alone that lack the error. A round is a choice of its own (:mod:`genbound.estimators.choice`), independent of the
others but for what these have told of how far rises spread among samples of a size, and how far the draws of one do
(:mod:`genbound.estimators.spread_by_size`): by that samples are drawn where the spread is, and it is decided how many
draws each gets. Mostly that is one, for another sample costs no more than another draw; some have two then, which tell
what of the spread is the draws'. There is no control: the trace of a sample takes more than a few draws do. A round has
as many samples as the sigma needs that lacks least, so that none gets many more than its error takes.

The rise is the mean of all rounds, each weighted by the inverse of its expected variance. Rounds end at a sigma when
its stated error is the wanted one. That they end where a stated error came out small, and are weighted by spreads that
are learned from them, biases the mean by less than its error.

Whether the loss is still quadratic is judged on the first samples, of which the trace is known too.

Cost:
    Two forward passes of every further sample for each sigma that lacks the error, and one without noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genbound.estimators.choice import LEAST, joined
from genbound.estimators.spread_by_size import Spreads
from genbound.network.problem import Problem
from genbound.quantities.base import Context, stack
from genbound.quantities.chosen_samples import SLACK, Round, chosen_problem, data_sem_of
from genbound.quantities.noise_grid import Grid, Rises
from genbound.quantities.trace_to_error import ROUNDS as OF_TRACE
from genbound.quantities.weight_noise import losses_without

ROUNDS = 12
OF_ALL = 1 + OF_TRACE + ROUNDS  # number of the round that has all samples
GROWTH = 2  # times what there is, that a round adds at most
LEAST_GROWTH = 0.125  # and at the least
DRAWS = (1, 2, 3, 4, 6, 8)  # of every sample of a round
DOUBLES = 0.125  # of many samples with one draw that get a second; of fewer than 512 more do
WIDEST = 2.0  # by which the square of a stated error exceeds what is expected of it, as is believed


@dataclass(frozen=True)
class RoundPart:
    """A rise from the samples of one round.

    Attributes:
        problem: with these samples measured.
        rises: what was found.
        sem: standard error of the rise over the draws, with that of the control's mean.
    """

    problem: Problem
    rises: Rises
    sem: float

    @property
    def values(self) -> np.ndarray:
        """The samples' own rises ``[N]``."""
        return self.rises.means / self.problem.shares

    @property
    def noise(self) -> np.ndarray:
        """Variances of these over the draws ``[N]``."""
        return self.rises.noise / self.problem.shares**2


@dataclass(frozen=True)
class Together:
    """The rise at one sigma from all of its rounds.

    Attributes:
        value: in the loss's unit.
        sem: its standard error over the draws.
        data_sem: over the choice of the samples.
        tail: what each draw adds to the error, in an unknown unit ``[D]``.
        num_draws: noises that were drawn, each sign counted.
        samples: which samples of the data were measured.
        spreads: what is expected of each sample of the data.
        expected: variance that is expected of the mean.
    """

    value: float
    sem: float
    data_sem: float
    tail: np.ndarray
    num_draws: int
    samples: frozenset[int]
    spreads: Spreads
    expected: float

    @property
    def error(self) -> float:
        """From draws and choice."""
        return float(np.hypot(self.sem, self.data_sem))


def measure_to_error(problem: Problem, context: Context, first: Sequence[RoundPart]) -> list[Together] | None:
    """The rises at all sigmas to the wanted error; ``None`` if that takes all samples.

    Args:
        problem: with the samples of ``first`` measured.
        context: of the measurement.
        first: what was found of them, sigma by sigma.
    """
    losses, options, parts = context.measured["losses"], context.options, [[part] for part in first]
    found = [_together(problem, losses.data["size"], own) for own in parts]
    for step in range(1, ROUNDS + 1):
        lacking = {i: one for i, one in enumerate(found) if one.error > SLACK * options.error * abs(one.value)}
        if not lacking:
            break
        plans = {i: _Plan.of(one, options.error * abs(one.value), len(lacking)) for i, one in lacking.items()}
        hardest = max(plans, key=lambda i: plans[i].num)
        anew, draws = plans[hardest].anew, plans[hardest].draws
        most = max(len(one.samples) for one in lacking.values())
        num = min(plan.num for plan in plans.values())
        num = plans[hardest].num if anew else int(min(max(num, LEAST, np.ceil(LEAST_GROWTH * most)), GROWTH * most))
        if num >= len(problem.data):
            return None
        expected = found[hardest].spreads.of(draws)
        chosen = chosen_problem(problem, losses, num, OF_TRACE + step, expected)
        for i, rises in zip(
            lacking, _rises(chosen, Round(context, OF_TRACE + step), list(lacking), draws), strict=True
        ):
            parts[i] = [*([] if anew else parts[i]), RoundPart(chosen, rises, rises.sem)]
            found[i] = _together(problem, losses.data["size"], parts[i])
    return found


def said_of_all(found: Sequence[Together]) -> dict[str, Any]:
    """As of :func:`genbound.quantities.chosen_samples.said_of`, of all samples of any sigma."""
    samples = repr(sorted(frozenset[int]().union(*(one.samples for one in found)))).encode()
    return {"choice": "size", "samples_sha256": hashlib.sha256(samples).hexdigest()}


def _rises(chosen: Problem, context: Round, sigmas: Sequence[int], draws: int) -> list[Rises]:
    """At these sigmas, from so many draws of every sample."""
    parts = context.map("base", chosen.shards(), lambda shard: losses_without(chosen, shard))
    unknown: Mapping[str, float] = {"value": 0.0}  # a trace that no control has the mean of
    grid = Grid(chosen, context, stack(parts, "loss"), stack(parts, "size"), unknown)
    return grid.measure(sigmas, np.zeros(len(sigmas)), np.full(chosen.num_samples, draws))


def _together(problem: Problem, sizes: np.ndarray, parts: Sequence[RoundPart]) -> Together:
    """The mean of some rounds; ``sizes [n]`` are those of all samples of the data."""
    members = [part.problem.indices for part in parts]
    values, noise = (np.concatenate([getattr(part, key) for part in parts]) for key in ("values", "noise"))
    draws = np.concatenate([part.rises.draws for part in parts])
    spreads = Spreads.learned(sizes[np.concatenate(members)], values, noise, draws, sizes)
    variances = np.maximum([_expected_variance(part, spreads) for part in parts], 1e-300)
    weights = (1 / variances) / (1 / variances).sum()
    choice = joined([part.problem.choice for part in parts if part.problem.choice is not None], weights)
    order, whole = problem.order_of(choice.members.tolist()), problem.measured_on(choice)
    return Together(
        float(weights @ [part.rises.value for part in parts]),
        float(np.linalg.norm(weights * [part.sem for part in parts])),
        float(data_sem_of(whole, values[order], noise[order])),
        np.concatenate([weight * part.rises.tail for weight, part in zip(weights, parts, strict=True)]),
        int(2 * draws.sum()),
        frozenset(whole.indices),
        spreads,
        float(1 / (1 / variances).sum()),
    )


def _expected_variance(part: RoundPart, spreads: Spreads) -> float:
    """Of a round's mean, by choice and draws."""
    choice, members = part.problem.choice, part.problem.indices
    assert choice is not None
    drawn = np.bincount(choice.strata, minlength=len(choice.sizes))
    between = np.bincount(choice.strata, spreads.between[members], len(choice.sizes)) / drawn
    scale = (choice.weights * choice.sizes / choice.total) ** 2 * (1 - drawn / choice.sizes) / drawn
    if part.rises.slope:
        own = part.sem**2
    else:
        own = float(((choice.shares / len(members)) ** 2 * spreads.draw[members] / part.rises.draws).sum())
    return float((scale * between).sum()) + own


@dataclass(frozen=True)
class _Plan:
    """What a sigma takes to its error.

    Attributes:
        num: further samples.
        draws: of each.
        anew: they stand alone, for they are fewer than it takes beside those that there are: rounds may have the same.
    """

    num: int
    draws: int
    anew: bool

    @classmethod
    def of(cls, found: Together, wanted: float, sigmas: int) -> _Plan:
        """For a wanted standard error, where so many sigmas share a sample's passes."""
        spreads = found.spreads
        draws = spreads.best_draws(lambda num: 1 + 2 * sigmas * (num + DOUBLES * (num == 1)), DRAWS)
        # A stated error is wider than what is expected: it is known from few samples.
        whole = min(max(found.error**2 / found.expected, 1.0), WIDEST) / max(wanted, 1e-150) ** 2
        known = 1 / found.expected
        num = spreads.samples_for(1 / (whole - known), draws) if whole > known else 0
        alone = spreads.samples_for(1 / whole, draws)
        return cls(alone, draws, True) if alone < num else cls(num, draws, False)
