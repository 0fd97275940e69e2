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

Every rise has the loss without noise taken off. Where what that is rounded by may be seen (a flat loss in single
precision), it is averaged over weights that differ by some roundings, and ``sem`` holds what is left.

Where an error is asked for over all samples of the data, further samples follow at the sigmas that lack it
(:mod:`genbound.quantities.noise_to_error`).

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from genbound.estimators.estimate import data_sem
from genbound.estimators.tail import pareto_shape
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, stack
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions
from genbound.quantities.chosen_samples import Round, data_sem_of, num_different, said_of, same_samples
from genbound.quantities.hessian_trace import total_trace
from genbound.quantities.noise_grid import HEAVY, Grid, Rises
from genbound.quantities.noise_to_error import OF_ALL, RoundPart, measure_to_error, said_of_all
from genbound.quantities.quadratic_regime import is_quadratic, mark_kinks, relative_rss, relative_rss_noise
from genbound.quantities.shared_noise import shared_rises, std_over_shared_draws
from genbound.quantities.weight_noise import are_rounded, losses_near, losses_without, rounding_of

NO_LAYER = 1e6  # relative error of the layers of a trace of which the total alone is wanted

Row = dict[str, Any]  # what is reported of one sigma


def measure(problem: Problem, context: Context) -> Measured:
    """A spread over shared draws, then the rise at every sigma from as many draws as the pilot asks for.

    Where an error is asked for that the samples of ``hessian_trace`` do not leave, further ones follow. Where that
    takes all samples, all of them are measured anew, with a trace of their own.
    """
    known, options = context.measured["hessian_trace"], context.options
    problem = same_samples(problem, known)
    first = _measure_on(problem, context, known.summary["total"])
    if not options.error or problem.choice is None:
        return first.measured
    found = measure_to_error(problem, context, first.parts)
    if found is None:
        own = HessianTraceOptions(error=options.error, layer_sem=NO_LAYER)
        problem = problem.over_all()
        trace = total_trace(problem, Round(context, OF_ALL, own, "trace"))
        return _measure_on(problem, Round(context, OF_ALL), trace).measured
    rows = [
        row | {
            "value": one.value, "sem": one.sem, "data_sem": one.data_sem, **_tail(one.tail),
            "num_perturbations": one.num_draws, "num_samples": len(one.samples),
        }
        for row, one in zip(first.measured.summary["sigmas"], found, strict=True)
    ]  # fmt: skip
    said = said_of_all(found)
    if any(len(one.samples) > num_different(problem) for one in found):
        said["num_compared"] = num_different(problem)
    return Measured(first.measured.summary | {"sigmas": rows, **said})


@dataclass(frozen=True)
class _First:
    """What is found on some samples, and what of it further ones go on from."""

    measured: Measured
    parts: list[RoundPart]


def _measure_on(problem: Problem, context: Context, trace: Mapping[str, float]) -> _First:
    """The rises on the problem's samples, of which ``trace`` is the Hessian's, with its errors."""
    parts = context.map("base", problem.shards(), lambda shard: losses_without(problem, shard))
    losses, gradients, rounding = stack(parts, "loss"), stack(parts, "size"), 0.0
    if are_rounded(problem, losses, 0.5 * min(context.options.sigmas) ** 2 * trace["value"]):
        near = context.map("near", problem.shards(), lambda shard: losses_near(problem, context, shard))
        losses, rounding = stack(near, "loss"), rounding_of(problem, near)
    every = range(0, problem.num_samples, -(-problem.num_samples // context.options.max_shared_samples))
    std = std_over_shared_draws(shared_rises(problem, context, losses, every))
    grid = Grid(problem, context, losses, gradients, trace)
    found, sigmas = grid.rises(), context.options.sigmas
    rows = mark_kinks([
        _row(problem, trace, sigmas[one.number], one, std[one.number], grid.sizes, rounding) for one in found
    ])  # fmt: skip
    values, approximations = ([row[key] for row in rows] for key in ("value", "hessian_approximation"))
    summary = {
        "sigmas": rows,
        "relative_rss": relative_rss(values, approximations),
        "relative_rss_noise": relative_rss_noise(rows),
        "leaves_quadratic_regime_at": next((r["sigma"] for r in rows if r["quadratic_regime"] is False), None),
        "noise": grid.noise.summary,
        "std_num_samples": len(every),
        **said_of(problem),
    }
    return _First(
        Measured(summary), [RoundPart(problem, one, row["sem"]) for one, row in zip(found, rows, strict=True)]
    )


def _row(
    problem: Problem, trace: Mapping[str, float], sigma: float, found: Rises, std: float, sizes: np.ndarray,
    rounding: float,
) -> Row:  # fmt: skip
    """What is reported of one sigma.

    Args:
        problem: with the samples measured.
        trace: of the Hessian on these samples, with its errors.
        sigma: standard deviation of the noise, in the unit of the weights.
        found: the rise there.
        std: spread over shared draws.
        sizes: samples of every stratum ``[S]``.
        rounding: standard error of the loss without noise.
    """
    approximation, tail = 0.5 * sigma**2 * trace["value"], _tail(found.tail)
    # Of value - approximation: both hold the trace, and what it is wrong by is the same in both.
    own = np.hypot(found.sem, rounding)
    apart = np.hypot(own, 0.5 * (found.slope - sigma**2) * trace["sem"])
    value = float(found.value)
    return {
        "sigma": sigma,
        "value": value,
        "sem": float(np.hypot(own, found.slope * 0.5 * trace["sem"])),
        "data_sem": _data_sem(problem, found, sizes),
        "std": float(std),
        **tail,
        "hessian_approximation": approximation,
        "hessian_approximation_sem": 0.5 * sigma**2 * trace["sem"],
        "quadratic_regime": is_quadratic(value, approximation, float(apart)) if tail["reliable"] else None,
        "control_slope": float(found.slope / sigma**2),
        "num_perturbations": int(2 * found.draws.sum()),
        "num_samples": num_different(problem),
    }


def _tail(sizes: np.ndarray) -> dict[str, Any]:
    """Whether the tail of the draws is light enough, from what each adds to the error ``[D]``."""
    shape = pareto_shape(sizes)
    return {"reliable": bool(shape <= HEAVY), "tail_shape": float(shape) if np.isfinite(shape) else None}


def _data_sem(problem: Problem, found: Rises, sizes: np.ndarray) -> float:
    """What the choice of the samples adds, from the spread of the strata's means."""
    if problem.num_samples >= problem.num_data:
        return 0.0
    if problem.choice is not None:  # every stratum is a sample
        own = problem.shares
        return float(data_sem_of(problem, found.means / own, found.noise / own**2))
    num = len(sizes)
    num_data = max(num, round(problem.num_data * (num / problem.num_samples)))
    return float(data_sem(found.means / sizes, found.noise / sizes**2, num_data))
