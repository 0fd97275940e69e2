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
    (``data_sem``): samples are chosen by size and weighted (:mod:`genbound.quantities.chosen_samples`).

    The draws go where the spread is. A sample's spread is told by the first probes of its
    neighbours in size, not by its own, and by the pilot, whose draws are not used again. What all first probes decide
    together is the scale of the counts and the layers' shares. It biases the value by less than their relative error
    over the number of samples: nothing for a hundred samples, but a reason to take more first probes where there are
    few. The spread itself is known from few draws of the few samples that rule it: ``sem`` is widened by Student's law
    with Satterthwaite's degrees of freedom, so that 1.96 of it cover 95 %.

References:
    Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines,
    Communications in Statistics, 1990. Ju, Li & Zhang, Robust fine-tuning of deep neural networks with
    Hessian-based generalization guarantees, ICML 2022 (what the trace is for).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from genbound.curvature.traces import (
    dense_remainder_trace,
    gauss_newton_trace,
    probe_trace,
    remainder_dimension,
    sampled_gauss_newton_trace,
)
from genbound.estimators.draws import Sampler
from genbound.estimators.estimate import Sampled, stratum_variances
from genbound.estimators.random import row_of
from genbound.estimators.trace_plan import Plan, with_total
from genbound.network.derivative_trial import is_large
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, per_layer, stack
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions
from genbound.quantities.chosen_samples import Round, as_arrays, chosen_problem, data_sem_of, said_of
from genbound.quantities.remainder_probes import (
    ERROR_SHARE,
    Probes,
    draw_remainder,
    most_probes,
    pilot_probes,
    plan_remainder,
    sampled_on,
    tapes_by_column,
)

NAME = "hessian_trace"
SMALL_PROBLEM = 2**24  # samples x weights x probes
SMALL_NETWORK = 2**16  # weights of a network that takes well below a millisecond for a product
FIRST = 128  # samples that tell how many an error takes
ROUNDS = 5  # in which the samples may grow to that number
DEAR_FEW = 32  # first probes of all samples of a large network, where each is dear, at the least
SLACK = 1.05  # times as many samples as are thought to do


@dataclass(frozen=True)
class FirstLook:
    """What the pass over the N samples finds, for L layers; each sample's by how much it counts.

    Attributes:
        gauss_newton: the Gauss-Newton part, with the total in the last column ``[N, L + 1]``.
        curved: layers that have a remainder ``[L]``.
        products: Hessian products on single samples that an exact remainder takes.
        sizes: norm of every sample's loss gradient in the output, which the spread of its remainder grows with ``[N]``.
        probes: the first double backward probes of every sample ``[N, D, L]``.
    """

    gauss_newton: Sampled
    curved: np.ndarray
    products: int
    sizes: np.ndarray
    probes: np.ndarray

    @property
    def remainder(self) -> Sampled:
        """What the first probes say of the remainder, with the total in the last column."""
        probes = with_total(self.probes)
        return Sampled.of(probes.mean(1), probes.var(1, ddof=1) / probes.shape[1], 0.0)


def measure(problem: Problem, context: Context) -> Measured:
    """The exact Gauss-Newton part, and the remainder: exact where that is cheap, else probed.

    Where an error is asked for there may be several rounds, each of more samples.
    """
    options = context.options
    num = min(FIRST, len(problem.data)) if options.error else problem.num_samples
    for step in range(ROUNDS):
        chosen, own, last = _chosen(problem, context, num), Round(context, step), step == ROUNDS - 1
        look = first_look(chosen, own, options, "gauss_newton")
        num = _wanted_samples(chosen, look.gauss_newton + look.remainder, options.error)
        if num > chosen.num_samples and not last:
            continue
        trace, plan = _with_remainder(chosen, own, look)
        num = _wanted_samples(chosen, trace, options.error)
        if num <= SLACK * chosen.num_samples:
            break
    return _report(chosen, trace, plan)


def _with_remainder(problem: Problem, context: Context, look: FirstLook) -> tuple[Sampled, Plan | None]:
    """The whole traces, and how the remainder was probed if it was."""
    trace = look.gauss_newton
    if not look.curved.any():
        return trace, None
    if look.products <= _affordable_products(problem, context.options):
        return trace + _exact_remainder(problem, context), None
    probes = Probes(problem, context.seed, look.curved)
    plan = plan_remainder(problem, context, probes, trace, look.sizes, look.probes)
    return trace + draw_remainder(problem, context, probes, plan, look.probes), plan


def total_trace(problem: Problem, context: Context) -> dict[str, Any]:
    """The trace of all layers on the problem's samples: ``value``, and ``sem`` and ``data_sem``, its errors."""
    look = first_look(problem, context, context.options, "gauss_newton")
    return _report(problem, *_with_remainder(problem, context, look)).summary["total"]


def _wanted_samples(problem: Problem, trace: Sampled, error: float) -> int:
    """How many samples leave so much of a relative error that draws with a quarter of their error complete it.

    So many as there are where no error is asked for, or samples are not chosen.
    """
    if not error or problem.choice is None:
        return problem.num_samples
    own = sampled_on(problem, trace)
    left = data_sem_of(problem, own.samples, own.noise)[-1]
    wanted = error * abs(trace.value[-1]) / np.hypot(1, ERROR_SHARE)
    if left <= wanted:
        return problem.num_samples
    most = len(problem.data)
    return int(min(np.ceil(SLACK * problem.num_samples * (left / max(wanted, 1e-300)) ** 2), most))


def _chosen(problem: Problem, context: Context, num: int) -> Problem:
    """The problem with the samples that are measured."""
    alike = context.options.choice == "uniform"
    return problem if alike else chosen_problem(problem, context.measured["losses"], num)


def _affordable_products(problem: Problem, options: HessianTraceOptions) -> float:
    """Most Hessian products on single samples that an exact remainder may take; each costs about a pass."""
    weights = sum(p.numel() for p in problem.params.values())
    return options.exact_products * min(1.0, SMALL_NETWORK / weights)


def first_look(problem: Problem, context: Context, options: HessianTraceOptions, stage: str) -> FirstLook:
    """The pass over the measured samples that has their Gauss-Newton parts and first probes."""
    parts = context.map(stage, problem.shards(), lambda shard: _look_at(problem, context.seed, options, shard))
    counts, shares = np.full(problem.num_samples, options.num_factors), problem.shares
    noise = stratum_variances(counts, stack(parts, "squares")) / counts[:, None] * shares[:, None] ** 2
    spread = (noise**2).sum(0) / (options.num_factors - 1)
    return FirstLook(
        Sampled.of(stack(parts, "mean") * shares[:, None], noise, spread),
        np.logical_or.reduce([part["curved"] for part in parts]),
        sum(int(part["products"]) for part in parts),
        stack(parts, "sizes") * shares,
        stack(parts, "first") * shares[:, None, None],
    )


def _look_at(problem: Problem, seed: int, options: HessianTraceOptions, shard: range) -> Part:
    """The first look at a shard of the samples."""
    layers, num_first = len(problem.layers), _num_first(problem, options)
    exact = problem.num_outputs <= options.exact_outputs
    values, first = np.zeros((len(shard), layers)), np.zeros((len(shard), num_first, layers))
    curved, products, sizes = np.zeros(layers, bool), 0, np.zeros(len(shard))
    for tape, columns in tapes_by_column(problem)(shard):
        rows = np.array([p - shard[0] for p in tape.positions])
        curved[columns] |= [name not in tape.piecewise_linear for name in tape.layers]
        products += len(tape) * remainder_dimension(tape)
        sizes[rows] = tape.output_gradient().flatten(1).norm(dim=1).double().cpu().numpy()
        if exact:
            values[np.ix_(rows, columns)] = gauss_newton_trace(tape).cpu().numpy()
        for draw in range(num_first):
            numbers = [row_of(f"{NAME} first", p, draw, num_first) for p in tape.positions]
            probed = probe_trace(tape, "remainder", numbers, seed)
            first[rows[:, None], draw, columns] = probed.cpu().numpy()
    part: Part = {"curved": curved, "products": np.array(products), "sizes": sizes, "first": first}
    if exact:
        return part | {"mean": with_total(values), "squares": np.zeros((len(shard), layers + 1))}
    drawn = _sampled_gauss_newton(problem, seed).moments(shard, [options.num_factors] * len(shard))
    return part | {"mean": drawn.mean, "squares": drawn.squares}


def _num_first(problem: Problem, options: HessianTraceOptions) -> int:
    """Probes that every sample gets with its Gauss-Newton part: two, or enough that few samples know their spread."""
    least = min(options.least_probes, DEAR_FEW) if is_large(problem) else options.least_probes
    return max(2, -(-least // problem.num_samples))


def _sampled_gauss_newton(problem: Problem, seed: int) -> Sampler:
    """Draws of the Gauss-Newton part from random combinations of the output coordinates."""
    return Sampler(
        "gauss_newton", tapes_by_column(problem),
        lambda tape, rows: sampled_gauss_newton_trace(tape, rows, seed),
        len(problem.layers), problem.batch_size, lambda draws, _: with_total(draws),
    )  # fmt: skip


def _exact_remainder(problem: Problem, context: Context) -> Sampled:
    """The remainder of every sample from its blocks' diagonals, ``[N, L + 1]`` with the total in the last column."""

    def diagonals(shard: range) -> Part:
        values = np.zeros((len(shard), len(problem.layers)))
        for tape, columns in tapes_by_column(problem)(shard):
            rows = np.array([p - shard[0] for p in tape.positions])
            values[np.ix_(rows, columns)] = dense_remainder_trace(tape).cpu().numpy()
        return {"mean": with_total(values)}

    values = stack(context.map("dense_remainder", problem.shards(), diagonals), "mean") * problem.shares[:, None]
    return Sampled.of(values, np.zeros_like(values))


def _report(problem: Problem, trace: Sampled, plan: Plan | None) -> Measured:
    num, layers = problem.num_samples, len(problem.layers)
    own = sampled_on(problem, trace)
    num_probes = np.zeros(num, dtype=int) if plan is None else plan.counts + plan.joint
    deviation = np.zeros((num, layers)) if plan is None else plan.deviation
    spread = data_sem_of(problem, own.samples, own.noise)
    summary = {"value": trace.value, "sem": trace.widened, "data_sem": spread}
    entries = {name: row | {"num_samples": num} for name, row in per_layer(problem, summary).items()}
    total = {key: float(array[-1]) for key, array in summary.items()} | {"num_samples": num}
    return Measured(
        {"layers": entries, "total": total, "num_probes": int(num_probes.sum()), **said_of(problem)},
        {
            "value": own.samples[:, :-1],
            "sem": np.sqrt(own.noise[:, :-1]),
            "num_probes": num_probes,
            "probe_std": deviation / problem.shares[:, None],
            **({} if problem.choice is None else {"sample": np.array(problem.indices), "weight": problem.shares}),
        },
        as_arrays(problem),
    )


def forecast(problem: Problem, options: HessianTraceOptions) -> float:
    """Gradients over the measured samples.

    A backward pass to the activations is about 0.4 of one, a probe of all layers 1.2; 1 and 2 with convolutions, for
    each sample has weights of its own there. Reckoned are every sample's first probes, then ``max_probes`` more
    (``small_probes`` of a small problem) for the layers and as much again for the total. It is less where the errors
    are met sooner. An exact remainder may take ``exact_products``, each some 0.4 of a gradient of one sample.
    """
    curved = sum(layer.num_weights for layer in problem.layers if layer.curved_by)
    products = min(_affordable_products(problem, options), problem.num_samples * curved)
    probed = _probed(problem, options, most_probes(problem, options))
    return max(probed, _cost(problem, options, 0.0) + 0.4 * products / problem.num_samples)


def usual(problem: Problem, options: HessianTraceOptions) -> float:
    """Likewise what it mostly takes: little beside the first probes where the choice of the samples rules the error.

    So it is in a small problem, where the many samples' first probes are mostly enough.
    """
    num, first = problem.num_samples, _num_first(problem, options)
    weights = sum(layer.num_weights for layer in problem.layers)
    if num < len(problem.data) or num * weights * first <= SMALL_PROBLEM:
        return _cost(problem, options, first + 1)
    return _probed(problem, options, options.max_probes)


def _probed(problem: Problem, options: HessianTraceOptions, most: int) -> float:
    """Likewise with so many probes for the layers, and for the total."""
    probes: float = _num_first(problem, options) + 2 * most
    return _cost(problem, options, probes + pilot_probes(problem, options, probes))


def first_look_gradients(problem: Problem, options: HessianTraceOptions) -> float:
    """Likewise what :func:`first_look` takes."""
    return _cost(problem, options, _num_first(problem, options))


def _cost(problem: Problem, options: HessianTraceOptions, probes: float) -> float:
    outputs = problem.num_outputs if problem.num_outputs <= options.exact_outputs else options.num_factors
    curved = any(layer.curved_by for layer in problem.layers)
    backward, probe = (1.0, 2.0) if any(layer.kind == "convolution" for layer in problem.layers) else (0.4, 1.2)
    return 0.5 + backward * outputs + (probe * probes if curved else 0.0)
