r"""How much the loss rises under Gaussian noise on the weights, by Monte Carlo.

.. math:: I(\sigma) = \mathbb E_{U}\,[\hat L(f_{W+U})] - \hat L(f_W), \qquad U_i \sim \mathcal N(0, \sigma^2 I)

on the weights of all layers. To second order it is :math:`\tfrac12 \sigma^2 \sum_i \mathrm{Tr}[H_i]`, an identity for
a quadratic loss; that Hessian approximation is reported beside it, with the relative residual sum of squares over the
grid, :math:`\sum_\sigma (I - \tfrac12\sigma^2\mathrm{Tr}H)^2 / \sum_\sigma I^2`, and with a statement, for every
sigma, whether the loss is still quadratic at that distance.

The value is Monte Carlo. Antithetic pairs cancel the odd orders. Every sample has an independent U, drawn in
activation space (:mod:`genbound.curvature.noise_by_row`), and samples with the larger spread have more draws. A
*pilot* round finds that spread; its values do not enter the mean. Most samples of a large set get a single draw. Some
of these are chosen beforehand for a second one, which tells the variance of all
(:func:`genbound.estimators.allocation.choose_doubles`). The same standard normals serve the whole grid. Some networks
have a layer that cannot be moved row by row: its weight is used twice, or by an operation that is not recognised.
There every block of 16 samples has an independent U, added to the weights.

Near W most of a draw's spread is that of its second-order term :math:`c = \tfrac12 U^\top H U`. Tangents give it
exactly for the same noise (:mod:`genbound.curvature.sweep`), and ``hessian_trace`` measures its mean
:math:`\tfrac12 \mathrm{Tr}\,H` with draws of its own. So c is a control variate
(:mod:`genbound.estimators.control_variate`). Its slope comes from the pilot, and is 0 where the trace is known too
badly to help. That is judged by the trace's own value: near that limit, 5 % by default, the trace is taken more often
when it came out large, by less than half of its error. ``sem`` holds both errors. Far from W the slope falls, and
with it what is saved: each sigma gets as many draws as it needs.

Draws of a network that fits its data have a heavy tail: rare ones raise the loss of a sample near the decision
boundary, and runs that miss them are low and sure of it. The control takes the bulk away and leaves the tail. So where
draws are cheap, the control goes if the pilot's tail with it is heavy, and there are as many draws as make the mean
nearly normal. ``reliable`` is false where the tail of the draws themselves (:mod:`genbound.estimators.tail`) is still
too heavy for ``sem``.

``std`` is another number: the spread over draws *shared* by all samples, what papers print after a plus-minus sign.
It is that of one-sided draws on at most ``max_shared_samples`` samples.

Cost:
    Two forward passes for each sigma and draw, ``2 x 5`` for one draw on the default grid; one to two more for c.
Variance:
    ``sem`` is the standard error of the mean over the draws: per sample, ``sigma^4 ||H||_F^2 / 2`` for a pair in the
    quadratic regime, without the part that c explains.

References:
    Ju, Li & Zhang, ICML 2022. Neyman, On the two different aspects of the representative method, JRSS, 1934
    (allocation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genbound.estimators.allocation import allocate, choose_doubles, choose_pilot, predict
from genbound.estimators.control_variate import ControlledDraws
from genbound.estimators.estimate import (
    data_sem,
    effective_freedom,
    stratified_freedom,
    stratified_mean,
    stratum_variances,
    student,
)
from genbound.estimators.tail import pareto_shape, skewness_of_mean
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, stack
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions
from genbound.quantities.chosen_samples import (
    ERROR_SHARE,
    SLACK,
    Round,
    chosen_problem,
    data_sem_of,
    num_different,
    said_of,
    same_samples,
    wanted_samples,
)
from genbound.quantities.hessian_trace import total_trace
from genbound.quantities.quadratic_regime import is_quadratic, mark_kinks, relative_rss, relative_rss_noise
from genbound.quantities.shared_noise import shared_rises, std_over_shared_draws
from genbound.quantities.weight_noise import Draw, find_noise, losses_without, ordered_draws

ROUNDS = 3  # in which the samples may grow to the number that an error takes
NO_LAYER = 1e6  # relative error of the layers of a trace of which the total alone is wanted
DRAWS = 128  # whose results are stored together
PILOT = 96  # most samples of the pilot round
SAFETY = 0.8  # the spread is known from a small pilot only
TAIL_PILOT = 512  # draws of a pilot that sees the tail
SKEWNESS = 0.15  # of a mean that is nearly normal
COARSE = 0.1  # relative error from which on few draws are wanted, and more would not be cheap
ROUNDING = 2  # units of rounding of a stratum's losses up to which what the control leaves is rounding, with no tail
LIGHT = 0.1  # shape of a tail that may stay where it can be had without
HEAVY = 0.7  # shape of the draws' tail
SMALL = 2**26  # samples x weights x draws that take seconds: small problems get better errors

Row = dict[str, Any]  # what is reported of one sigma


def measure(problem: Problem, context: Context) -> Measured:
    """A spread over shared draws, then the rise at every sigma from as many draws as the pilot asks for.

    Where an error is asked for that the samples of ``hessian_trace`` do not leave, there are rounds, each of more of
    them, with a trace of their own.
    """
    known, own = context.measured["hessian_trace"], context
    problem, trace = same_samples(problem, known), known.summary["total"]
    for step in range(1, ROUNDS + 1):
        found = _measure_on(problem, own, trace)
        num = wanted_samples(problem, found.summary["sigmas"], context.options.error)
        if num <= SLACK * problem.num_samples or step == ROUNDS:
            break
        problem = chosen_problem(problem, context.measured["losses"], num, step, known.data.get("spread"))
        own = Round(context, step)
        options = HessianTraceOptions(error=context.options.error, layer_sem=NO_LAYER)
        trace = total_trace(problem, Round(context, step, options, "trace"))
    return found


def _measure_on(problem: Problem, context: Context, trace: Mapping[str, float]) -> Measured:
    """The rises on the problem's samples, of which ``trace`` is the Hessian's, with its errors."""
    parts = context.map("base", problem.shards(), lambda shard: losses_without(problem, shard))
    losses, gradients = stack(parts, "loss"), stack(parts, "size")
    every = range(0, problem.num_samples, -(-problem.num_samples // context.options.max_shared_samples))
    std = std_over_shared_draws(shared_rises(problem, context, losses, every))
    grid = _Grid(problem, context, losses, gradients, trace)
    rows = mark_kinks(grid.rows(std))
    values, approximations = ([row[key] for row in rows] for key in ("value", "hessian_approximation"))
    return Measured({
        "sigmas": rows,
        "relative_rss": relative_rss(values, approximations),
        "relative_rss_noise": relative_rss_noise(rows),
        "leaves_quadratic_regime_at": next((r["sigma"] for r in rows if r["quadratic_regime"] is False), None),
        "noise": grid.noise.summary,
        "std_num_samples": len(every),
        **said_of(problem),
    })  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """What the pilot decides.

    Attributes:
        slopes: of the control, for each sigma ``[S]``.
        counts: draws of every stratum, for each sigma ``[S, strata]``.
    """

    slopes: np.ndarray
    counts: np.ndarray

    def groups(self) -> list[list[int]]:
        """Neighbouring sigmas that take about as many draws, within a factor of two, and so share them."""
        totals = [int(counts.sum()) for counts in self.counts]
        groups: list[list[int]] = []
        for i, total in enumerate(totals):
            together = [total, *(totals[j] for j in groups[-1])] if groups else []
            if together and max(together) <= 2 * min(together):
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups


class _Grid:
    """The rise of the loss over a grid of sigmas.

    Args:
        problem: what is measured.
        context: of the measurement.
        losses: of every sample without noise ``[N]``.
        gradients: norm of every sample's loss gradient in the output ``[N]``.
        trace: of the Hessian on these samples, with its errors.

    Attributes:
        noise: how the weights are moved.
    """

    def __init__(
        self,
        problem: Problem,
        context: Context,
        losses: np.ndarray,
        gradients: np.ndarray,
        trace: Mapping[str, float],
    ):
        self._problem, self._context, self._options = problem, context, context.options
        self.noise = find_noise(problem, context, losses)
        self._trace = trace
        # What the spread of each stratum grows with, and how many samples it has, [strata].
        gradients, losses = gradients * problem.shares, losses * problem.shares
        self._expected = np.array([np.linalg.norm(gradients[members]) for members in self.noise.strata])
        self._sizes = np.array([len(members) for members in self.noise.strata])
        self._losses = np.array([np.linalg.norm(losses[members]) for members in self.noise.strata])

    def rows(self, std: np.ndarray) -> list[Row]:
        """What is reported of every sigma; ``std [S]`` is the spread over shared draws."""
        plan = self._plan()
        rows = [row for group in plan.groups() for row in self._measure(plan, group, std)]
        return sorted(rows, key=lambda row: row["sigma"])

    def _draw(
        self, stage: str, kind: str, counts: np.ndarray, sigmas: Sequence[float], controlled: bool = True
    ) -> ControlledDraws:
        """``counts [strata]`` draws: their rises, and their second-order terms as the control if that is asked for."""
        draws = ordered_draws(self.noise, counts.tolist(), kind)
        items = [[draw for _, draw in draws[i : i + DRAWS]] for i in range(0, len(draws), DRAWS)]

        def part(some: Sequence[Draw]) -> Part:
            rise, control = self.noise.rises(some, sigmas, controlled)
            return {"rise": rise, "control": control}

        parts = self._context.map(stage, items, part)
        return ControlledDraws(stack(parts, "rise"), stack(parts, "control"), np.array([s for s, _ in draws]), counts)

    def _plan(self) -> _Plan:
        """A pilot round in some strata: their spread tells that of all, and how far the control explains it."""
        options, strata = self._options, len(self._sizes)
        piloted, _ = choose_pilot(self._expected, PILOT)
        weights = sum(layer.num_weights for layer in self._problem.layers)
        affordable = min(
            self.noise.most_draws // strata,
            SMALL // (self._problem.num_samples * weights),
            options.small_perturbations,
        )
        # Few strata: each one's spread must be known better. Where draws cost nothing, its tail is looked at as well.
        least = -(-options.least_pairs // len(piloted))
        num_pilot = max(options.num_pilot, least, min(TAIL_PILOT // len(piloted), affordable))
        counts = np.zeros(strata, dtype=int)
        counts[piloted] = num_pilot
        draws = self._draw("pilot", "pilot", counts, options.sigmas)
        slopes = draws.slopes()
        dropped = self._drop(draws, slopes, piloted, affordable) & (affordable >= num_pilot)
        slopes, targets = self._wanted_errors(np.where(dropped, 0.0, slopes))
        variances = draws.moments(slopes)[1][piloted] / (num_pilot - 1)
        cubes = draws.cubes(slopes)[piloted]
        found = [
            self._counts(
                predict(variances[:, [i]], np.array(piloted), self._expected, num_pilot),
                cubes[:, [i]], piloted, target, affordable, dropped[i],
            )
            for i, target in enumerate(targets)
        ]  # fmt: skip
        return _Plan(slopes, np.array(found))

    def _drop(self, draws: ControlledDraws, slopes: np.ndarray, piloted: Sequence[int], affordable: int) -> np.ndarray:
        """For which sigmas the control goes ``[S]``: it leaves a heavy tail, and cheap draws reach the error without.

        A heavy tail is worse than a wide spread: runs that miss it are sure of a wrong value.

        Args:
            draws: of the pilot.
            slopes: of the control ``[S]``.
            piloted: the strata that they are from.
            affordable: draws of a stratum on the average that cost nothing.
        """
        shapes = np.array([pareto_shape(sizes) for sizes in draws.contributions(slopes)[0].T])
        squares = draws.moments()[1][piloted] / (draws.counts[piloted, None] - 1)
        left = np.sqrt(draws.moments(slopes)[1][piloted] / (draws.counts[piloted, None] - 1)).mean(0)
        rounding = ROUNDING * torch.finfo(self._problem.dtype).eps * self._losses[piloted].mean()
        error = np.sqrt(squares).mean(0) / np.sqrt(max(affordable, 1) * len(self._sizes))
        _, targets = self._wanted_errors(np.zeros(len(slopes)))
        heavy = (shapes > LIGHT) & (left > rounding)
        return (slopes != 0) & heavy & (error <= targets) & (self._options.relative_sem < COARSE)

    def _counts(
        self,
        variances: np.ndarray,
        cubes: np.ndarray,
        piloted: Sequence[int],
        target: float,
        affordable: int,
        cheap: bool,
    ) -> np.ndarray:
        """Draws of every stratum for a wanted error; if they are cheap, as many as make the mean's distribution normal.

        Args:
            variances: of a draw ``[strata, 1]``.
            cubes: its third central moment in the piloted strata ``[P, 1]``.
            piloted: their numbers.
            target: wanted standard error of the strata's mean.
            affordable: draws of a stratum on the average that cost nothing.
            cheap: the control was dropped for more draws.
        """
        strata, budget = len(self._sizes), max(self._options.max_perturbations, affordable)
        minimum = -(-self._options.least_pairs // strata)
        counts = allocate(variances, np.array([target]), minimum=minimum, budget=budget)
        piloted = list(piloted)
        while cheap and counts.mean() < affordable:
            skewness = skewness_of_mean(counts[piloted], cubes, variances[piloted])
            if abs(skewness[0]) <= SKEWNESS:
                break
            target /= 2**0.5
            counts = allocate(variances, np.array([target]), minimum=minimum, budget=budget)
        return counts

    def _wanted_errors(self, slopes: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """The slopes, 0 where the control's mean is known too badly, and the standard errors of the strata's mean."""
        slopes, targets = slopes.copy(), []
        for i, sigma in enumerate(self._options.sigmas):
            # Beyond the quadratic regime the value is larger than that, or has met its ceiling and spreads less.
            target = SAFETY * self._options.relative_sem * 0.5 * sigma**2 * abs(self._trace["value"])
            left = 0.5 * sigma**2 * self._trace["data_sem"]
            if self._options.error:  # what the choice of the samples does not use up of it
                whole = self._options.error * 0.5 * sigma**2 * abs(self._trace["value"])
                target = SAFETY * np.sqrt(max(whole**2 - left**2, (0.1 * target) ** 2))
            target = max(target, SAFETY * ERROR_SHARE * left)
            known = 0.5 * slopes[i] * self._trace["sem"]
            if known > target / SAFETY:
                slopes[i] = known = 0.0
            target = np.sqrt(max(target**2 - known**2, 0.2 * target**2))
            targets.append(target * self._problem.num_samples / len(self._sizes))
        return slopes, targets

    def _measure(self, plan: _Plan, group: list[int], std: np.ndarray) -> list[Row]:
        """What is reported of the sigmas of a group, from draws that they share."""
        sigmas, slopes = [self._options.sigmas[i] for i in group], plan.slopes[group]
        counts = np.max(plan.counts[group], axis=0)
        doubles = choose_doubles(counts, self._expected)
        counts = counts + doubles
        draws = self._draw(f"draws {sigmas[0]:g}", "draws", counts, sigmas, controlled=bool(slopes.any()))
        mean, squares = draws.moments(slopes)
        variances = stratum_variances(counts, squares, doubles)
        value, sem = stratified_mean(counts, mean, variances)
        contributions, free = draws.contributions(slopes)
        # Where most strata have one draw, those with more tell the error of all: by rare large ones, it may be.
        told = effective_freedom(contributions**2, free)
        sem = sem * student(np.minimum(stratified_freedom(counts, variances), told))
        shapes = [pareto_shape(sizes) for sizes in contributions.T]
        # From the mean over strata of sums to the mean over the samples, and the control's mean put back.
        scale = len(self._sizes) / self._problem.num_samples
        value, sem = value * scale + slopes * 0.5 * self._trace["value"], sem * scale
        spread = self._data_sem(draws, doubles)
        return [
            self._row(sigmas[k], slopes[k], value[k], sem[k], spread[k], std[i], 2 * counts.sum(), shapes[k])
            for k, i in enumerate(group)
        ]

    def _data_sem(self, draws: ControlledDraws, doubles: np.ndarray) -> np.ndarray:
        """What the choice of the samples adds, from the spread of the strata's means; ``[S]``."""
        if self._problem.num_samples >= self._problem.num_data:
            return np.zeros(draws.values.shape[1])
        mean, squares = draws.moments()
        variances = stratum_variances(draws.counts, squares, doubles) / draws.counts[:, None]
        if self._problem.choice is not None:  # every stratum is a sample
            own = self._problem.shares[:, None]
            return data_sem_of(self._problem, mean / own, variances / own**2)
        sizes, num = self._sizes[:, None], len(self._sizes)
        num_data = max(num, round(self._problem.num_data * (num / self._problem.num_samples)))
        return data_sem(mean / sizes, variances / sizes**2, num_data)

    def _row(
        self,
        sigma: float,
        slope: float,
        value: float,
        sem: float,
        spread: float,
        std: float,
        num_draws: int,
        shape: float,
    ) -> Row:
        """What is reported of one sigma.

        Args:
            sigma: standard deviation of the noise, in the unit of the weights.
            slope: of the control.
            value: rise of the mean loss, in the loss's unit.
            sem: its standard error over the draws alone, without the trace's.
            spread: its standard error over the choice of the samples.
            std: spread over shared draws.
            num_draws: noises that were drawn, each sign counted.
            shape: of the draws' tail.
        """
        trace = self._trace
        approximation = 0.5 * sigma**2 * trace["value"]
        # Of value - approximation: both hold the trace, and what it is wrong by is the same in both.
        reliable = bool(shape <= HEAVY)
        apart = np.hypot(sem, 0.5 * (slope - sigma**2) * trace["sem"])
        return {
            "sigma": sigma,
            "value": float(value),
            "sem": float(np.hypot(sem, slope * 0.5 * trace["sem"])),
            "data_sem": float(spread),
            "std": float(std),
            "reliable": reliable,
            "tail_shape": float(shape) if np.isfinite(shape) else None,
            "hessian_approximation": approximation,
            "hessian_approximation_sem": 0.5 * sigma**2 * trace["sem"],
            "quadratic_regime": is_quadratic(float(value), approximation, float(apart)) if reliable else None,
            "control_slope": float(slope / sigma**2),
            "num_perturbations": int(num_draws),
            "num_samples": num_different(self._problem),
        }
