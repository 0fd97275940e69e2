r"""Trace of every layer's Hessian block, with error bars.

.. math:: \mathrm{Tr}[H_i] = \frac1N \sum_x \bigl( \mathrm{Tr}[G_i](x) + \mathrm{Tr}[R_i](x) \bigr)

The Gauss-Newton part :math:`G_i = J_i^\top (\nabla_f^2\ell) J_i` is exact: one backward pass for each of the k output
coordinates gives it for all layers and samples at once. The remainder
:math:`R_i = \sum_c (\partial\ell/\partial f_c) \nabla^2_{W_i} f_c` vanishes where the output is piecewise linear in the weight;
elsewhere it is probed, independently for every sample.

Cost:
    k backward passes to the activations with two probes of every sample, then for curved layers, where much work is ahead, a pilot of
    ``num_pilot`` probes of at most ``PILOT`` samples, and as many probes as the requested standard errors need:
    :mod:`genbound.estimators.trace_plan` says of which kinds, and what they cost.
Variance:
    Only the remainder's: ``2 (||R_s||_F^2 - sum_j R_jj^2)`` for independent signs, plus the cross-layer blocks where layers are probed
    together. The draws go where the spread is: a sample's is told by the first probes of its neighbours in size, not by its own, and by
    the pilot, whose draws are not used again. What all first probes decide together (the scale of the counts, the layers' shares)
    biases the value by less than their relative error over the number of samples: nothing for a hundred, and the reason for more
    of them where there are few.

References:
    Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines,
    Communications in Statistics, 1990. Ju, Li & Zhang, Robust fine-tuning of deep neural networks with
    Hessian-based generalization guarantees, ICML 2022 (what the trace is for).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from genbound.curvature.sweep import Sweep, can_sweep, separate_cost
from genbound.curvature.traces import (
    dense_remainder_trace,
    gauss_newton_trace,
    joint_trace,
    joint_trace_twice,
    probe_trace,
    remainder_dimension,
    sampled_gauss_newton_trace,
    separate_traces,
)
from genbound.estimators.allocation import choose_pilot, expect, shrink
from genbound.estimators.estimate import data_sem, stratified_mean, stratum_variances
from genbound.estimators.random import row_of
from genbound.estimators.trace_plan import BACKWARD, Plan, Sweeps, plan_probes
from genbound.network.problem import SHARD
from genbound.quantities.base import Context, Measured, Part, per_layer, stack
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions

NAME = "hessian_trace"
PILOT = 128  # most samples of the pilot round
DEAR = 10  # times the pilot's own cost: work before which it pays
TYPICAL = 0.8  # variance of a joint sweep over that of a double backward probe, where nothing is measured
SMALL = 2**28  # samples x weights x probes that take no more than about half a minute: small problems get better errors


def _num_first(problem) -> int:
    """Probes that every sample gets with its Gauss-Newton part: two, or enough that few samples know their spread."""
    return max(2, -(-128 // problem.num_samples))


def _with_total(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, values.sum(-1, keepdims=True)], -1)


class Moments:
    """Running mean and sum of squared deviations of per-sample draws ``[N, columns]``."""

    def __init__(self, num: int, columns: int):
        self.count = np.zeros(num, dtype=int)
        self.mean = np.zeros((num, columns))
        self.squares = np.zeros((num, columns))

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        self.count[rows] += 1
        delta = values - self.mean[rows]
        self.mean[rows] += delta / self.count[rows, None]
        self.squares[rows] += delta * (values - self.mean[rows])

    def part(self) -> Part:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}


def _columns(problem, names) -> np.ndarray:
    order = {layer.name: i for i, layer in enumerate(problem.layers)}
    return np.array([order[name] for name in names], dtype=int)


def _copies(num: int, members: int, room: int) -> int:
    """How many copies of each of few samples fill a batch, a divisor of the draws that each one gets."""
    return max(c for c in range(1, num + 1) if num % c == 0 and (c == 1 or c * members <= room))


def _tapes(problem, positions):
    return ((tape, _columns(problem, tape.layers)) for tape in problem.tapes(positions))


def _sweeps(columns):
    return lambda problem, positions: ((Sweep(problem, run), np.array(columns)) for run in problem.batches(positions))


def _draws(
    problem, kind: str, positions, counts, passes, function, width: int, finish=lambda values, p: values
) -> Part:
    """Draw repeatedly on shared passes; mean and spread of every sample's draws.

    ``counts`` are the draws of each position; ``passes(problem, positions)`` gives tapes or sweeps with the columns that they fill;
    ``function(pass, rows) -> [N, filled]`` takes where each row's random numbers come from. Few samples with many draws fill
    their batch with copies of each. A layer whose samples cannot share a pass comes on a tape of its own, so the draws of
    the two are added up per sample before ``finish(values [draws, width], position)`` has them.
    """
    moments, groups = Moments(len(positions), finish(np.zeros((1, width)), positions[0]).shape[1]), {}
    for i, (position, num) in enumerate(zip(positions, counts, strict=True)):
        if num:
            groups.setdefault(int(num), []).append((i, position))
    for num, group in sorted(groups.items()):
        members = [position for _, position in group]
        values, row = np.zeros((len(members), num, width)), {p: i for i, p in enumerate(members)}
        copies, met = _copies(num, len(members), problem.batch_size), Counter()
        for one, filled in passes(problem, [p for p in members for _ in range(copies)]):
            rows, first = np.array([row[p] for p in one.positions]), []
            for p in one.positions:
                first.append(met[filled[0], p])
                met[filled[0], p] += 1
            numbers = [draw + np.array(first) for draw in range(0, num, copies)]
            # Read back together: an accelerator is waited for once a pass.
            found = torch.stack([
                function(one, [row_of(kind, p, int(d), num) for p, d in zip(one.positions, draws, strict=True)])
                for draws in numbers
            ]).cpu().numpy()  # fmt: skip
            for draws, drawn in zip(numbers, found, strict=True):
                values[rows[:, None], draws[:, None], filled] = drawn
        values = np.stack([finish(own, position) for own, position in zip(values, members, strict=True)])
        for draw in range(num):
            moments.add(np.array([i for i, _ in group]), values[:, draw])
    return moments.part()


def measure(problem, context: Context) -> Measured:
    options, seed = context.options, context.seed
    exact, layers = problem.num_outputs <= options.exact_outputs, len(problem.layers)
    num_first = _num_first(problem)

    def gauss_newton(positions: range) -> Part:
        values, curved = np.zeros((len(positions), layers)), np.zeros(layers, bool)
        products, sizes, first = 0, np.zeros(len(positions)), np.zeros((len(positions), num_first, layers))
        for tape, columns in _tapes(problem, positions):
            rows = np.array([p - positions[0] for p in tape.positions])
            curved[columns] |= [name not in tape.piecewise_linear for name in tape.layers]
            products += len(tape) * remainder_dimension(tape)
            sizes[rows] = tape.output_gradient().flatten(1).norm(dim=1).double().cpu().numpy()
            if exact:
                values[np.ix_(rows, columns)] = gauss_newton_trace(tape).cpu().numpy()
            for draw in range(num_first):
                chosen = [row_of(f"{NAME} first", p, draw, num_first) for p in tape.positions]
                first[rows[:, None], draw, columns] = probe_trace(tape, "remainder", chosen, seed).cpu().numpy()
        if exact:
            drawn = {"mean": _with_total(values), "squares": np.zeros((len(positions), layers + 1))}
        else:
            drawn = _draws(
                problem, "gauss_newton", positions, [options.num_factors] * len(positions), _tapes,
                lambda tape, rows: sampled_gauss_newton_trace(tape, rows, seed), layers, lambda x, p: _with_total(x),
            )  # fmt: skip
        return {
            "mean": drawn["mean"],
            "squares": drawn["squares"],
            "curved": curved,
            "products": np.array(products),
            "sizes": sizes,
            "first": first,
        }

    def dense_remainder(positions: range) -> Part:
        values = np.zeros((len(positions), layers))
        for tape, columns in _tapes(problem, positions):
            rows = np.array([p - positions[0] for p in tape.positions])
            values[np.ix_(rows, columns)] = dense_remainder_trace(tape).cpu().numpy()
        return {"mean": _with_total(values)}

    shards = problem.shards()
    parts = context.map("gauss_newton", shards, gauss_newton)
    flat, flat_squares = stack(parts, "mean"), stack(parts, "squares")
    counts = np.full(problem.num_samples, options.num_factors)
    variances = stratum_variances(counts, flat_squares)
    value, sem = stratified_mean(counts, flat, variances)
    noise = variances / counts[:, None]
    sample_values, num_probes = flat, np.zeros(problem.num_samples, dtype=int)
    deviation = np.zeros((problem.num_samples, layers))
    curved = np.logical_or.reduce([part["curved"] for part in parts])
    if curved.any() and sum(int(part["products"]) for part in parts) <= options.exact_products:
        remainder = stack(context.map("dense_remainder", shards, dense_remainder), "mean")
        value, sample_values = value + remainder.mean(0), sample_values + remainder
    elif curved.any():
        # A layer that the output is piecewise linear in has no remainder, but cross-layer blocks with the others: it stays out.
        columns = np.flatnonzero(curved)
        names = [problem.layers[i].name for i in columns]
        plan = _plan(problem, context, flat, sem, stack(parts, "sizes"), stack(parts, "first"), columns)

        def free(values, weight):
            """The draws of the layers, free of the share that the joint draws take over."""
            return _with_total(values - weight * plan.shares * values.sum(-1, keepdims=True))

        def backward(tape, rows):
            return probe_trace(tape, "remainder", rows, seed)

        def separate(sweep, rows):
            return separate_traces(sweep, names, rows, seed)

        def joint(sweep, rows):
            return joint_trace(sweep, names, rows, seed)[:, None]

        def draws(positions: range) -> Part:
            at = list(positions)
            apart, together = plan.separate[at], plan.joint[at]
            own = {key: 0.0 for key in ("count", "mean", "squares")}
            for num, passes, function in (
                ((plan.counts[at] - num_first) * ~apart, _tapes, backward),
                (plan.counts[at] * apart, _sweeps(columns), separate),
            ):
                drawn = _draws(
                    problem, f"{NAME} draws", positions, num, passes, function, layers,
                    lambda values, p: free(values, plan.weight[p]),
                )  # fmt: skip
                own = {key: own[key] + drawn[key] for key in own}
            drawn = _draws(problem, f"{NAME} joint", positions, together, _sweeps([0]), joint, 1)
            own["joint_mean"], own["joint_squares"] = drawn["mean"][:, 0], drawn["squares"][:, 0]
            return own

        drawn = context.map("draws", shards, draws)
        shares = np.append(plan.shares, 1.0)
        own = Moments(problem.num_samples, layers + 1)
        own.count, own.mean, own.squares = (stack(drawn, key) for key in ("count", "mean", "squares"))
        # The probes that every sample had with its Gauss-Newton part are some of the double backward ones.
        rows, first = np.flatnonzero(~plan.separate), stack(parts, "first")
        for draw in range(num_first):
            own.add(rows, free(first[rows, draw], plan.weight[rows, None]))
        remainder = own.mean + (plan.weight * stack(drawn, "joint_mean"))[:, None] * shares
        spread = own.squares / (own.count * (own.count - 1))[:, None]
        pairs = np.maximum(plan.joint * (plan.joint - 1), 1)
        spread += (plan.weight**2 * stack(drawn, "joint_squares") / pairs)[:, None] * shares**2
        value, sem = value + remainder.mean(0), np.hypot(sem, np.sqrt(spread.sum(0)) / problem.num_samples)
        noise, sample_values = noise + spread, sample_values + remainder
        num_probes, deviation = plan.counts + plan.joint, plan.deviation
    spread = data_sem(sample_values, noise, problem.num_data)
    summary = {"value": value, "sem": sem, "data_sem": spread}
    entries = per_layer(problem, summary)
    for entry in entries.values():
        entry["num_samples"] = problem.num_samples
    total = {key: float(array[-1]) for key, array in summary.items()} | {"num_samples": problem.num_samples}
    return Measured(
        {"layers": entries, "total": total, "num_probes": int(num_probes.sum())},
        {
            "value": sample_values[:, :-1],
            "sem": np.sqrt(noise[:, :-1]),
            "num_probes": num_probes,
            "probe_std": deviation,
        },
    )


def _plan(
    problem, context: Context, sample_values: np.ndarray, have: np.ndarray, sizes: np.ndarray, first: np.ndarray,
    columns: np.ndarray,
) -> Plan:  # fmt: skip
    """What follows from every sample's first probes, and from pilot rounds where much work is ahead.

    What a sample gets depends on the spread of other samples' first probes and on the pilot, not on its own, except by the size of
    the values that the wanted errors are relative to: a bias of about twice the squared relative error.
    """
    options, seed, num = context.options, context.seed, problem.num_samples
    names, layers = [problem.layers[i].name for i in columns], len(problem.layers)
    first = _with_total(first)
    variances = expect(sizes, first.var(1, ddof=1))
    found = sample_values + first.mean(1)
    magnitude = np.abs(found.mean(0))
    # Of the samples' own values, free of the probes' noise.
    square = (found**2 - first.var(1, ddof=1) / first.shape[1]).mean(0)
    typical = np.sqrt(np.maximum(square, 0))[:-1]
    layer_targets = options.layer_sem * np.maximum.reduce(
        [magnitude[:-1], 0.1 * typical, np.full(layers, 0.01 * magnitude[:-1].max())]
    )
    # Layers of opposite sign may cancel in the total: then it is the layers that set the scale.
    total_target = max(options.total_sem * magnitude[-1], 0.25 * options.total_sem * magnitude[:-1].sum())
    targets = np.append(layer_targets, total_target)
    targets = np.sqrt(np.maximum(targets**2 - have**2, (0.5 * targets) ** 2))
    weights = sum(layer.num_weights for layer in problem.layers)
    budget = max(options.max_probes, min(512, SMALL // (num * weights)))
    swept = can_sweep(problem)
    plan = plan_probes(variances, targets, first.shape[1], budget, Sweeps(None, lambda: TYPICAL) if swept else None)
    piloted, hard = choose_pilot(sizes, min(PILOT, max(PILOT // 4, num // 4)))
    if num * plan.passes() < DEAR * len(piloted) * options.num_pilot * BACKWARD:
        return plan
    items = [piloted[i : i + SHARD] for i in range(0, len(piloted), SHARD)]
    pilot = context.map(
        "pilot", items,
        lambda positions: _draws(
            problem, f"{NAME} pilot", positions, [options.num_pilot] * len(positions), _tapes,
            lambda tape, rows: probe_trace(tape, "remainder", rows, seed), layers, lambda x, p: _with_total(x),
        ),
    )  # fmt: skip
    found = stack(pilot, "squares") / (options.num_pilot - 1)
    variances[piloted] = shrink(found, variances[piloted], options.num_pilot)
    hardest = sorted(hard[:8])

    def ratios() -> tuple[np.ndarray, float]:
        apart = context.map(
            "pilot_separate", [hardest],
            lambda positions: _draws(
                problem, f"{NAME} pilot apart", positions, [options.num_pilot] * len(positions), _sweeps(columns),
                lambda sweep, rows: separate_traces(sweep, names, rows, seed), layers,
            ),
        )  # fmt: skip
        row = {p: i for i, p in enumerate(piloted)}
        before = found[[row[p] for p in hardest], :-1].sum(0)
        after = stack(apart, "squares").sum(0) / (options.num_pilot - 1)
        return np.divide(after, before, out=np.ones(layers), where=before > 0), separate_cost(problem)

    def joint() -> float:
        """From the same draws with and without part of their mean taken."""
        both = context.map(
            "pilot_joint", [hardest],
            lambda positions: _draws(
                problem, f"{NAME} pilot joint", positions, [16] * len(positions), _sweeps([0, 1]),
                lambda sweep, rows: joint_trace_twice(sweep, names, rows, seed), 2,
            ),
        )  # fmt: skip
        whole, mean = stack(both, "squares").sum(0)
        return mean / whole if whole > 0 else 1.0

    return plan_probes(variances, targets, first.shape[1], budget, Sweeps(ratios, joint) if swept else None)


def forecast(problem, options: HessianTraceOptions) -> float:
    """Gradients over the measured samples: a backward pass to the activations is about 0.4 of one, a probe of all layers 1.2.

    Every sample's first probes, then as much time as ``max_probes`` more for the layers and again for the total: less where the errors are
    met sooner, more for a problem so small that it takes seconds (see SMALL).
    """
    outputs = problem.num_outputs if problem.num_outputs <= options.exact_outputs else options.num_factors
    curved = any(layer.curved_by for layer in problem.layers)
    pilot = options.num_pilot * min(1.0, PILOT / problem.num_samples)
    probes = _num_first(problem) + pilot + 2 * options.max_probes
    return 0.5 + 0.4 * outputs + (1.2 * probes if curved else 0.0)
