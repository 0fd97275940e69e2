r"""``hessian_trace`` with a wanted relative error of its total over all samples, draws and choice of samples together.

The samples come in *rounds*. Each is a choice of its own (:mod:`genbound.estimators.choice`), independent of the others
but for what these have told: how far values spread among samples of a size, and how far the draws of one do
(:mod:`genbound.estimators.spread_by_size`). By that samples are drawn where the spread is, and by the prices of a
sample and of a draw it is decided how many draws each gets. A round at most doubles what there is, for early ones tell
little. The estimate is the mean of all rounds, each weighted by the inverse of its expected variance, which is one for
all layers.

Rounds end when the stated error is the wanted one. What they tell decides about the next ones alone; that they end
where a stated error came out small, and are weighted by spreads that are learned from them, biases the mean by less
than its error.

Cost:
    Some rounds of a backward pass for each output coordinate and two or more double backward probes of every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genbound.estimators.allocation import expect
from genbound.estimators.choice import joined
from genbound.estimators.estimate import Sampled
from genbound.estimators.measured import Measured
from genbound.estimators.spread_by_size import Spreads, chances
from genbound.network.problem import Problem
from genbound.quantities.base import Context
from genbound.quantities.chosen_samples import FIRST, SLACK, Round, chosen_problem, data_sem_of
from genbound.quantities.remainder_probes import sampled_on
from genbound.quantities.trace_look import affordable_products, closer_look, cost_of, exact_remainder, first_look

ROUNDS = 10
GROWTH = 2  # times what there is, that a round adds at most
LEAST_GROWTH = 0.25  # and at the least
DRAWS = (2, 3, 4, 6, 8, 12, 16)  # of every sample of a round; one alone would not tell its spread
WIDEST = 2.0  # by which the square of a stated error exceeds what is expected of it, as is believed


@dataclass(frozen=True)
class ToError:
    """What was found on some of n samples.

    Attributes:
        problem: with the N samples of all rounds measured.
        trace: theirs, by how much each counts ``[N, L + 1]``, with the total in the last column.
        probes: of each sample ``[N]``.
        deviation: standard deviation of a probe of its layers ``[N, L]``.
        spreads: what further samples are best drawn in proportion to ``[n]``.
    """

    problem: Problem
    trace: Sampled
    probes: np.ndarray
    deviation: np.ndarray
    spreads: np.ndarray

    @property
    def error(self) -> float:
        """Of the total, from draws and choice."""
        own = sampled_on(self.problem, self.trace)
        left = data_sem_of(self.problem, own.samples, own.noise)
        return float(np.hypot(self.trace.widened[-1], left[-1]))


@dataclass(frozen=True)
class _Round:
    """One round on m of n samples; values are the samples' own, with the total in the last column.

    Attributes:
        problem: with these samples measured.
        values: ``[m, L + 1]``.
        noise: variance of each by the draws ``[m, L + 1]``.
        loose: its square over its degrees of freedom ``[m, L + 1]``.
        drawn: what of the total's noise is the probes', and would fall with their number ``[m]``.
        probes: of every sample.
        deviation: standard deviation of a probe ``[m, L]``.
        expected: what the samples were drawn in proportion to ``[n]``.
    """

    problem: Problem
    values: np.ndarray
    noise: np.ndarray
    loose: np.ndarray
    drawn: np.ndarray
    probes: int
    deviation: np.ndarray
    expected: np.ndarray


def measure_to_error(problem: Problem, context: Context) -> ToError | None:
    """The traces from as many samples as the wanted error takes; ``None`` if it takes all of them."""
    losses, options, every = context.measured["losses"], context.options, len(problem.data)
    num, draws, expected, rounds = FIRST, DRAWS[0], losses.data["size"], list[_Round]()
    for step in range(ROUNDS):
        if num >= every:
            return None
        rounds.append(_measure_round(problem, context, step, num, draws, expected))
        spreads = _learned(losses, rounds)
        variances = np.maximum([_expected_variance(one, spreads) for one in rounds], 1e-300)
        found = _together(problem, rounds, variances, spreads.of(draws))
        error, wanted = found.error, options.error * abs(float(found.trace.value[-1]))
        if error <= SLACK * wanted:
            break
        draws = spreads.best_draws(lambda num: cost_of(problem, options, num), DRAWS)
        expected = spreads.of(draws)
        num, alone = _further(spreads, draws, variances, error, wanted, sum(len(one.values) for one in rounds))
        if alone:
            rounds.clear()
    return found


def _measure_round(problem: Problem, context: Context, step: int, num: int, draws: int, expected: np.ndarray) -> _Round:
    """A look at so many samples with so many probes of each, or their exact remainders where these are cheap."""
    losses, options, own = context.measured["losses"], context.options, Round(context, step)
    chosen = chosen_problem(problem, losses, num, step, expected)
    look, shares = first_look(chosen, own, options, "gauss_newton", draws), chosen.shares[:, None]
    exact = look.products <= affordable_products(problem, options)
    curved = look.curved.any()
    rest = exact_remainder(chosen, own) if exact and curved else closer_look(chosen, own, look).remainder
    known = look.gauss_newton.noise / shares**2, rest.noise / shares**2
    loose = known[0] ** 2 / (options.num_factors - 1) + known[1] ** 2 / draws  # bounds have as many freedoms as draws
    spread = look.probes.var(1, ddof=1) * (rest.noise[:, :-1] > 0)
    deviation = np.sqrt(expect(look.sizes, spread)) / shares
    values = (look.gauss_newton.samples + rest.samples) / shares
    probes = draws if spread.any() else 0
    return _Round(chosen, values, sum(known), loose, known[1][:, -1], probes, deviation, expected)


def _learned(losses: Measured, rounds: Sequence[_Round]) -> Spreads:
    """What all rounds tell of the totals of samples of a size."""
    sizes = losses.data["size"]
    members = np.concatenate([one.problem.indices for one in rounds])
    values, drawn = (np.concatenate(each) for each in zip(*((o.values[:, -1], o.drawn) for o in rounds), strict=True))
    draws = np.concatenate([np.full(len(one.values), one.probes) for one in rounds])
    return Spreads.learned(sizes[members], values, drawn, draws, sizes)


def _expected_variance(one: _Round, spreads: Spreads) -> float:
    """Of a round's mean."""
    return spreads.variance(chances(one.expected, one.problem.num_samples), max(one.probes, 1))


def _together(problem: Problem, rounds: Sequence[_Round], variances: np.ndarray, spreads: np.ndarray) -> ToError:
    """The mean of all rounds, of so large a variance each; ``spreads`` is handed on."""
    weights = (1 / variances) / (1 / variances).sum()
    choice = joined([one.problem.choice for one in rounds if one.problem.choice is not None], weights)
    order, whole = problem.order_of(choice.members.tolist()), problem.measured_on(choice)
    values, noise, loose, deviation = (
        np.concatenate([getattr(one, key) for one in rounds])[order]
        for key in ("values", "noise", "loose", "deviation")
    )
    probes = np.concatenate([np.full(len(one.values), one.probes) for one in rounds])[order]
    shares = whole.shares[:, None]
    return ToError(
        whole, Sampled.of(values * shares, noise * shares**2, (loose * shares**4).sum(0)), probes, deviation, spreads
    )


def _further(
    spreads: Spreads, draws: int, variances: np.ndarray, error: float, wanted: float, measured: int
) -> tuple[int, bool]:
    """How many samples the next round has, and whether it stands alone.

    Rounds may have the same samples. So where there are few others left, one that has no sample twice takes fewer than
    it takes beside the rounds that there are.
    """
    known = float((1 / variances).sum())
    # A stated error is wider than what is expected: it is known from few samples.
    whole = min(max(error**2 * known, 1.0), WIDEST) / max(wanted, 1e-300) ** 2
    num = spreads.samples_for(1 / (whole - known), draws) if whole > known else 0
    alone = spreads.samples_for(1 / whole, draws)
    if alone < num:
        return alone, True
    return int(min(max(num, np.ceil(LEAST_GROWTH * measured)), GROWTH * measured)), False
