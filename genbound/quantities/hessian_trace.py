r"""Trace of every layer's Hessian block, with error bars.

.. math:: \mathrm{Tr}[H_i] = \frac1N \sum_x \bigl( \mathrm{Tr}[G_i](x) + \mathrm{Tr}[R_i](x) \bigr)

The Gauss-Newton part :math:`G_i = J_i^\top (\nabla_f^2\ell) J_i` is exact: one backward pass for each of the k output
coordinates gives it for all layers and samples at once. The remainder
:math:`R_i = \sum_c (\partial\ell/\partial f_c) \nabla^2_{W_i} f_c` vanishes where the output is piecewise linear in the weight;
elsewhere it is probed, independently for every sample.

Cost:
    k backward passes to the activations, then for curved layers a pilot of ``num_pilot`` probes and as many probes as the
    requested standard errors need (one double backward pass to the activations each, all layers together).
Variance:
    Only the remainder's: ``2 (||R_s||_F^2 - sum_j R_jj^2)`` for independent signs, plus the cross-layer blocks. The draws go
    where the pilot found the spread; the pilot's own draws are not used again, so that the estimate stays unbiased.

References:
    Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines,
    Communications in Statistics, 1990. Ju, Li & Zhang, Robust fine-tuning of deep neural networks with
    Hessian-based generalization guarantees, ICML 2022 (what the trace is for).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from genbound.curvature.traces import (
    dense_remainder_trace,
    gauss_newton_trace,
    probe_trace,
    remainder_dimension,
    sampled_gauss_newton_trace,
)
from genbound.estimators.allocation import allocate, shrink
from genbound.estimators.estimate import data_sem, stratified_mean
from genbound.quantities.base import Context, Measured, Part, Quantity, check_options, per_layer, stack

NAME = "hessian_trace"
SMALL = 2**28  # samples x weights x probes that take no more than about half a minute: small problems get better errors


@dataclass(frozen=True)
class HessianTraceOptions:
    """Options of ``hessian_trace``.

    Attributes:
        layer_sem: wanted standard error of each layer, relative to its trace (or to 1 % of the largest layer's).
        total_sem: wanted standard error of the total, relative to it.
        num_pilot: probes per sample in the pilot round.
        max_probes: cap on the mean number of probes per sample; a small problem may take up to 512, see SMALL.
        exact_outputs: most output coordinates for which the Gauss-Newton part is computed exactly.
        num_factors: random combinations per sample beyond that.
        exact_products: the remainder too is computed exactly if that takes no more Hessian products on single samples.
    """

    layer_sem: float = 0.07
    total_sem: float = 0.02
    num_pilot: int = 4
    max_probes: int = 16
    exact_outputs: int = 64
    num_factors: int = 16
    exact_products: int = 2**15

    def __post_init__(self):
        check_options(self, layer_sem=0, total_sem=0, num_pilot=2, max_probes=1, num_factors=2)


def _with_total(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, values.sum(-1, keepdims=True)], -1)


class Moments:
    """Running mean and sum of squared deviations of per-sample draws ``[N, L + 1]``, the last column their sum."""

    def __init__(self, num: int, layers: int):
        self.count = np.zeros(num, dtype=int)
        self.mean = np.zeros((num, layers + 1))
        self.squares = np.zeros((num, layers + 1))

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        values = _with_total(values)
        self.count[rows] += 1
        delta = values - self.mean[rows]
        self.mean[rows] += delta / self.count[rows, None]
        self.squares[rows] += delta * (values - self.mean[rows])

    def part(self) -> Part:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}


def _columns(problem, tape) -> np.ndarray:
    order = {layer.name: i for i, layer in enumerate(problem.layers)}
    return np.array([order[name] for name in tape.layers])


def _copies(num: int, members: int, room: int) -> int:
    """How many copies of each of few samples fill a batch, a divisor of the draws that each one gets."""
    return max(c for c in range(1, num + 1) if num % c == 0 and (c == 1 or c * members <= room))


def _draws(problem, positions, groups, function) -> Part:
    """Draw repeatedly on shared tapes.

    ``groups`` maps a number of draws to the positions that get so many; ``function(tape, draws) -> [N, L]`` takes the number of
    each row's draw. Few samples with many draws fill their batch with copies of each. A layer whose samples cannot share
    a pass comes on a tape of its own, so the draws of the two kinds are added up per sample.
    """
    start, layers = positions[0], len(problem.layers)
    moments = Moments(len(positions), layers)
    for num, members in groups.items():
        values = np.zeros((len(members), num, layers))
        row = {p: i for i, p in enumerate(members)}
        copies = _copies(num, len(members), problem.batch_size)
        met: Counter = Counter()
        for tape in problem.tapes([p for p in members for _ in range(copies)]):
            rows, columns = np.array([row[p] for p in tape.positions]), _columns(problem, tape)
            first = []
            for p in tape.positions:
                first.append(met[columns[0], p])
                met[columns[0], p] += 1
            numbers = [draw + np.array(first) for draw in range(0, num, copies)]
            # Read back together: an accelerator is waited for once a tape.
            found = torch.stack([function(tape, draws.tolist()) for draws in numbers]).cpu().numpy()
            for draws, drawn in zip(numbers, found, strict=True):
                values[rows[:, None], draws[:, None], columns] = drawn
        for draw in range(num):
            moments.add(np.array([p - start for p in members]), values[:, draw])
    return moments.part()


def measure(problem, context: Context) -> Measured:
    options, seed = context.options, context.seed
    exact = problem.num_outputs <= options.exact_outputs

    def gauss_newton(positions: range) -> Part:
        values, curved = np.zeros((len(positions), len(problem.layers))), np.zeros(len(problem.layers), bool)
        products, sizes = 0, np.zeros(len(positions))
        for tape in problem.tapes(positions):
            rows = np.array([p - positions[0] for p in tape.positions])
            columns = _columns(problem, tape)
            curved[columns] |= [name not in tape.piecewise_linear for name in tape.layers]
            products += len(tape) * remainder_dimension(tape)
            sizes[rows] = tape.output_gradient().flatten(1).norm(dim=1).double().cpu().numpy()
            if exact:
                values[np.ix_(rows, columns)] = gauss_newton_trace(tape).cpu().numpy()
        if exact:
            drawn = {"mean": _with_total(values), "squares": np.zeros((len(positions), len(problem.layers) + 1))}
        else:
            drawn = _draws(
                problem, positions, {options.num_factors: list(positions)},
                lambda tape, draws: sampled_gauss_newton_trace(tape, seed, draws),
            )  # fmt: skip
        return {
            "mean": drawn["mean"],
            "squares": drawn["squares"],
            "curved": curved,
            "products": np.array(products),
            "sizes": sizes,
        }

    def dense_remainder(positions: range) -> Part:
        values = np.zeros((len(positions), len(problem.layers)))
        for tape in problem.tapes(positions):
            rows = np.array([p - positions[0] for p in tape.positions])
            values[np.ix_(rows, _columns(problem, tape))] = dense_remainder_trace(tape).cpu().numpy()
        return {"mean": _with_total(values)}

    shards = problem.shards()
    parts = context.map("gauss_newton", shards, gauss_newton)
    flat, flat_squares = stack(parts, "mean"), stack(parts, "squares")
    counts = np.full(problem.num_samples, options.num_factors)
    value, sem = stratified_mean(counts, flat, flat_squares)
    noise = flat_squares / (counts - 1)[:, None] / counts[:, None]
    sample_values, num_probes = flat, np.zeros(problem.num_samples, dtype=int)
    curved = np.logical_or.reduce([part["curved"] for part in parts])
    if curved.any() and sum(int(part["products"]) for part in parts) <= options.exact_products:
        remainder = stack(context.map("dense_remainder", shards, dense_remainder), "mean")
        value, sample_values = value + remainder.mean(0), sample_values + remainder
    elif curved.any():
        pilot = context.map(
            "pilot", shards,
            lambda positions: _draws(
                problem, positions, {options.num_pilot: list(positions)},
                lambda tape, draws: probe_trace(tape, "remainder", seed, (NAME, "pilot"), draws),
            ),
        )  # fmt: skip
        weights = sum(layer.num_weights for layer in problem.layers)
        budget = max(options.max_probes, min(512, SMALL // (problem.num_samples * weights)))
        num_probes = _allocation(
            options, budget, value + stack(pilot, "mean").mean(0), stack(pilot, "squares"), stack(parts, "sizes"), sem
        )

        def draws(positions: range) -> Part:
            groups: dict[int, list[int]] = {}
            for p in positions:
                groups.setdefault(int(num_probes[p]), []).append(p)
            return _draws(
                problem, positions, dict(sorted(groups.items())),
                lambda tape, draws: probe_trace(tape, "remainder", seed, (NAME, "draws"), draws),
            )  # fmt: skip

        drawn = context.map("draws", shards, draws)
        means, squares = stack(drawn, "mean"), stack(drawn, "squares")
        remainder, remainder_sem = stratified_mean(num_probes, means, squares)
        value, sem = value + remainder, np.hypot(sem, remainder_sem)
        noise = noise + squares / (num_probes - 1)[:, None] / num_probes[:, None]
        sample_values = sample_values + means
    spread = data_sem(sample_values, noise, problem.num_data)
    names = {"value": value, "sem": sem, "data_sem": spread}
    layers = per_layer(problem, names)
    for entry in layers.values():
        entry["num_samples"] = problem.num_samples
    total = {key: float(array[-1]) for key, array in names.items()} | {"num_samples": problem.num_samples}
    return Measured(
        {"layers": layers, "total": total, "num_probes": int(num_probes.sum())},
        {"value": sample_values[:, :-1], "sem": np.sqrt(noise[:, :-1]), "num_probes": num_probes},
    )


def _allocation(
    options: HessianTraceOptions, budget: int, value: np.ndarray, squares: np.ndarray, sizes: np.ndarray,
    have: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Probes per sample from the pilot's spread; enough of them that the standard errors are themselves reliable."""
    magnitude = np.abs(value)
    layer_targets = options.layer_sem * np.maximum(magnitude[:-1], 0.01 * magnitude[:-1].max())
    # Layers of opposite sign may cancel in the total: then it is the layers that set the scale.
    total_target = max(options.total_sem * magnitude[-1], 0.25 * options.total_sem * magnitude[:-1].sum())
    targets = np.append(layer_targets, total_target)
    targets = np.sqrt(np.maximum(targets**2 - have**2, (0.5 * targets) ** 2))
    num = len(squares)
    return allocate(
        shrink(squares / (options.num_pilot - 1), sizes, options.num_pilot), targets,
        minimum=max(4, -(-128 // num)), budget=budget,
    )  # fmt: skip


def forecast(problem, options: HessianTraceOptions) -> float:
    """Gradients over the measured samples: a backward pass to the activations is about 0.4 of one."""
    outputs = problem.num_outputs if problem.num_outputs <= options.exact_outputs else options.num_factors
    curved = any(layer.curved_by for layer in problem.layers)
    return 0.5 + 0.4 * outputs + (1.2 * (options.num_pilot + options.max_probes) if curved else 0.0)


QUANTITY = Quantity(
    NAME,
    "trace of each layer's Hessian block, exact Gauss-Newton part plus a probed remainder",
    measure,
    HessianTraceOptions,
    gradients=forecast,
    reference="Hutchinson 1990; Ju, Li & Zhang 2022",
)
