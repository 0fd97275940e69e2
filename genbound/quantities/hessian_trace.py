r"""Trace of every layer's Hessian block, with error bars.

.. math:: \mathrm{Tr}[H_i] = \frac1N \sum_x \bigl( \mathrm{Tr}[G_i](x) + \mathrm{Tr}[R_i](x) \bigr)

The Gauss-Newton part :math:`G_i = J_i^\top (\nabla_f^2\ell) J_i` is exact: one backward pass for each of the k output
coordinates gives it for all layers and samples at once. The remainder
:math:`R_i = \sum_c (\partial\ell/\partial f_c) \nabla^2_{W_i} f_c` vanishes where the output is piecewise linear in
the weight; elsewhere it is probed, independently for every sample.

Cost:
    k backward passes to the activations, with two or more probes of every sample. Then, for curved layers, as many
    probes as the requested standard errors need. Where much work is ahead, a pilot of
    ``num_pilot`` probes of at most ``PILOT`` samples comes first. :mod:`genbound.estimators.trace_plan` says which
    kinds of probe there are, and what they cost.
Variance:
    Over the draws only the remainder's: ``2 (||R_s||_F^2 - sum_j R_jj^2)`` for independent signs, plus the cross-layer
    blocks where layers are probed together. Draws stop at a quarter of what the choice of the samples leaves
    (``data_sem``): samples are chosen by size and weighted (:mod:`genbound.quantities.chosen_samples`). With ``error``
    they are split by their prices (:mod:`genbound.quantities.trace_to_error`).

    The draws go where the spread is. A sample's spread is told by the first probes of its
    neighbours in size, not by its own, and by the pilot, whose draws are not used again; its own have a say in how
    many joint sweeps it has, and in no weight. What all first probes decide
    together is the scale of the counts and the layers' shares. It biases the value by less than their relative error
    over the number of samples: nothing for a hundred samples, but a reason to take more first probes where there are
    few. The spread itself is known from few draws of the few samples that rule it: so the products that the draws are
    made from tell it as well (:mod:`genbound.estimators.draw_spread`), and ``sem`` is widened by Student's law with
    Satterthwaite's degrees of freedom, so that 1.96 of it cover 95 %.

References:
    Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines,
    Communications in Statistics, 1990. Ju, Li & Zhang, Robust fine-tuning of deep neural networks with
    Hessian-based generalization guarantees, ICML 2022 (what the trace is for).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genbound.estimators.disk_table import Table
from genbound.estimators.estimate import Sampled
from genbound.estimators.trace_plan import Plan
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, per_layer
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions
from genbound.quantities.chosen_samples import (
    as_arrays,
    can_choose,
    chosen_problem,
    data_sem_of,
    num_different,
    once,
    said_of,
    usual_samples,
)
from genbound.quantities.remainder_probes import (
    Probes,
    draw_remainder,
    most_probes,
    pilot_probes,
    plan_remainder,
    sampled_on,
)
from genbound.quantities.trace_by_blocks import is_too_large, measure_by_blocks
from genbound.quantities.trace_look import (
    FirstLook,
    affordable_products,
    closer_look,
    cost_of,
    exact_remainder,
    first_look,
    num_first_probes,
)
from genbound.quantities.trace_to_error import DRAWS, measure_to_error

SMALL_PROBLEM = 2**24  # samples x weights x probes


def measure(problem: Problem, context: Context) -> Measured:
    """The exact Gauss-Newton part, and the remainder: exact where that is cheap, else probed.

    Where an error is asked for, some samples are measured as :mod:`genbound.quantities.trace_to_error` says, or all.
    """
    options = context.options
    if options.error and can_choose(problem):
        found = measure_to_error(problem, context)
        if found is not None:
            return _report(found.problem, found.trace, found.probes, found.deviation, {"spread": found.spreads})
        problem = chosen_problem(problem, context.measured["losses"], len(problem.data))
    elif options.choice == "size":
        problem = chosen_problem(problem, context.measured["losses"], problem.num_samples)
    return _measure_all(problem, context)


def _measure_all(problem: Problem, context: Context) -> Measured:
    """The traces on the problem's samples, by blocks where these are very many."""
    if is_too_large(problem):
        return _reported(problem, *measure_by_blocks(problem, context, _whole_trace))
    return _report_planned(problem, *_whole_trace(problem, context))


def _whole_trace(problem: Problem, context: Context) -> tuple[Sampled, Plan | None]:
    """The traces on the problem's samples, and how the remainder was probed if it was."""
    return _with_remainder(problem, context, first_look(problem, context, context.options, "gauss_newton"))


def _with_remainder(problem: Problem, context: Context, look: FirstLook) -> tuple[Sampled, Plan | None]:
    """The whole traces, and how the remainder was probed if it was."""
    trace = look.gauss_newton
    if not look.curved.any():
        return trace, None
    if look.products <= affordable_products(problem, context.options):
        return trace + exact_remainder(problem, context), None
    probes, look = Probes(problem, context.seed, look.curved), closer_look(problem, context, look)
    plan = plan_remainder(problem, context, probes, trace, look.sizes, look.bounds, look.probes)
    return trace + draw_remainder(problem, context, probes, plan, look.probes, look.bounds), plan


def total_trace(problem: Problem, context: Context) -> dict[str, Any]:
    """The trace of all layers on the problem's samples: ``value``, and ``sem`` and ``data_sem``, its errors."""
    return _measure_all(problem, context).summary["total"]


def _report_planned(problem: Problem, trace: Sampled, plan: Plan | None) -> Measured:
    num, layers = problem.num_samples, len(problem.layers)
    if plan is None:
        return _report(problem, trace, np.zeros(num, dtype=int), np.zeros((num, layers)))
    return _report(problem, trace, plan.counts + plan.joint, plan.deviation / problem.shares[:, None])


def _report(
    problem: Problem, trace: Sampled, num_probes: np.ndarray, deviation: np.ndarray, more: Part | None = None
) -> Measured:
    """The summary and the samples' values.

    Args:
        problem: with the N samples that are measured.
        trace: theirs, by how much each counts ``[N, L + 1]``.
        num_probes: of each ``[N]``.
        deviation: standard deviation of a probe of its own layers ``[N, L]``.
        more: what else is known of the samples of the data, for other quantities.
    """
    own = sampled_on(problem, trace)
    spread = data_sem_of(problem, own.samples, own.noise)
    summary = {"value": trace.value, "sem": trace.widened, "data_sem": spread}
    samples = once(problem, own.samples[:, :-1], own.noise[:, :-1], num_probes, deviation)
    return _reported(problem, summary, samples, more)


def _reported(
    problem: Problem, summary: dict[str, np.ndarray], samples: dict[str, Table], more: Part | None = None
) -> Measured:
    """From what is known of the layers and, in the last place, their total ``[L + 1]``, and of every sample."""
    num = num_different(problem)
    entries = {name: row | {"num_samples": num} for name, row in per_layer(problem, summary).items()}
    total = {key: float(array[-1]) for key, array in summary.items()} | {"num_samples": num}
    return Measured(
        {"layers": entries, "total": total, "num_probes": int(samples["num_probes"].sum()), **said_of(problem)},
        samples,
        as_arrays(problem) | (more or {}),
    )


def forecast(problem: Problem, options: HessianTraceOptions) -> float:
    """Gradients over the measured samples.

    A backward pass to the activations is about 0.4 of one, a probe of all layers 1.2; 1 and 2 with convolutions, for
    each sample has weights of its own there. Reckoned are every sample's first probes, then ``max_probes`` more
    (``small_probes`` of a small problem) for the layers and as much again for the total. It is less where the errors
    are met sooner. An exact remainder may take ``exact_products``, each some 0.4 of a gradient of one sample.
    """
    curved = sum(layer.num_weights for layer in problem.layers if layer.curved_by)
    products = min(affordable_products(problem, options), problem.num_samples * curved)
    probed = _probed(problem, options, most_probes(problem, options))
    return max(probed, cost_of(problem, options, 0.0) + 0.4 * products / problem.num_samples)


def usual(problem: Problem, options: HessianTraceOptions) -> float:
    """Likewise what it mostly takes: little beside the first probes where the choice of the samples rules the error.

    So it is in a small problem, where the many samples' first probes are mostly enough. Where an error is asked for, it
    takes as many samples as are typical, with two or three probes each.
    """
    if options.error and can_choose(problem):
        samples = usual_samples(problem, options.error)
        return samples / problem.num_samples * cost_of(problem, options, DRAWS[0] + 0.5)
    num, first = problem.num_samples, num_first_probes(problem, options)
    weights = sum(layer.num_weights for layer in problem.layers)
    if num < len(problem.data) or num * weights * first <= SMALL_PROBLEM:
        return cost_of(problem, options, first + 1)
    return _probed(problem, options, options.max_probes)


def _probed(problem: Problem, options: HessianTraceOptions, most: int) -> float:
    """Likewise with so many probes for the layers, and for the total."""
    probes: float = num_first_probes(problem, options) + 2 * most
    return cost_of(problem, options, probes + pilot_probes(problem, options, probes))
