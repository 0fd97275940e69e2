"""Rises of the loss on some samples, at a grid of sigmas: how many draws each takes, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from genbound.estimators.allocation import allocate, choose_doubles, choose_pilot, predict
from genbound.estimators.control_variate import ControlledDraws
from genbound.estimators.estimate import (
    effective_freedom,
    stratified_freedom,
    stratified_mean,
    stratum_variances,
    student,
)
from genbound.estimators.tail import pareto_shape, skewness_of_mean
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Part, stack
from genbound.quantities.chosen_samples import ERROR_SHARE
from genbound.quantities.weight_noise import Draw, find_noise, ordered_draws

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


@dataclass(frozen=True)
class Rises:
    """What is known of one sigma from S strata of samples.

    Attributes:
        number: of the sigma in the grid.
        slope: of the control.
        value: rise of the mean loss, in the loss's unit.
        sem: its standard error over the draws alone, without the trace's.
        means: of each stratum's draws, without the control, summed over its samples by how much they count ``[S]``.
        noise: their variances ``[S]``; of those with one draw the mean of others.
        draws: antithetic pairs of each stratum ``[S]``.
        tail: what each draw adds to the error, in an unknown unit ``[D]``; those that are alone in their stratum are
            left out.
    """

    number: int
    slope: float
    value: float
    sem: float
    means: np.ndarray
    noise: np.ndarray
    draws: np.ndarray
    tail: np.ndarray


@dataclass(frozen=True)
class Plan:
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


class Grid:
    """The rise of the loss over a grid of sigmas.

    Args:
        problem: what is measured.
        context: of the measurement.
        losses: of every sample without noise ``[N]``.
        gradients: norm of every sample's loss gradient in the output ``[N]``.
        trace: of the Hessian on these samples, with its errors.

    Attributes:
        noise: how the weights are moved.
        sizes: samples of every stratum ``[strata]``.
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
        self.sizes = np.array([len(members) for members in self.noise.strata])
        self._losses = np.array([np.linalg.norm(losses[members]) for members in self.noise.strata])

    def rises(self) -> list[Rises]:
        """The rise at every sigma, from as many draws as the pilot asks for."""
        plan = self._plan()
        found = [
            one
            for group in plan.groups()
            for one in self.measure(group, plan.slopes[group], np.max(plan.counts[group], axis=0))
        ]
        return sorted(found, key=lambda one: one.number)

    def measure(self, group: Sequence[int], slopes: np.ndarray, counts: np.ndarray) -> list[Rises]:
        """The rises at the sigmas of a group, from draws that they share.

        Args:
            group: their numbers in the grid, G of them.
            slopes: of the control for each ``[G]``.
            counts: draws of every stratum ``[strata]``; some of those with one get a second.
        """
        sigmas = [self._options.sigmas[i] for i in group]
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
        # From the mean over strata of sums to the mean over the samples, and the control's mean put back.
        scale = len(self.sizes) / self._problem.num_samples
        value, sem = value * scale + slopes * 0.5 * self._trace["value"], sem * scale
        means, squares = draws.moments()
        noise = stratum_variances(counts, squares, doubles) / counts[:, None]
        return [
            Rises(i, slopes[k], value[k], sem[k], means[:, k], noise[:, k], counts, contributions[:, k])
            for k, i in enumerate(group)
        ]

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

    def _plan(self) -> Plan:
        """A pilot round in some strata: their spread tells that of all, and how far the control explains it."""
        options, strata = self._options, len(self.sizes)
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
        return Plan(slopes, np.array(found))

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
        error = np.sqrt(squares).mean(0) / np.sqrt(max(affordable, 1) * len(self.sizes))
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
        strata, budget = len(self.sizes), max(self._options.max_perturbations, affordable)
        minimum = -(-self._options.least_pairs // strata)
        if self._options.error and self._problem.choice is not None:
            return np.full(strata, minimum)  # further samples come cheaper than further draws of these
        counts = allocate(variances, np.array([target]), minimum=minimum, budget=budget)
        piloted = list(piloted)
        finest = np.sqrt(variances.mean() / budget) / strata  # below it the budget alone decides, and no count grows
        while cheap and target > finest and counts.mean() < affordable:
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
                # Where more samples may follow, draws that leave less than their choice does are not worth it.
                least = 0.1 * target if self._problem.choice is None else left
                target = SAFETY * np.sqrt(max(whole**2 - left**2, least**2))
            target = max(target, SAFETY * ERROR_SHARE * left)
            known = 0.5 * slopes[i] * self._trace["sem"]
            if known > target / SAFETY:
                slopes[i] = known = 0.0
            target = np.sqrt(max(target**2 - known**2, 0.2 * target**2))
            targets.append(target * self._problem.num_samples / len(self.sizes))
        return slopes, targets
