r"""How much the loss rises under Gaussian noise on the weights, by Monte Carlo.

.. math:: I(\sigma) = \mathbb E_{U}\,[\hat L(f_{W+U})] - \hat L(f_W), \qquad U_i \sim \mathcal N(0, \sigma^2 I)

on the weights of all layers. To second order it is :math:`\tfrac12 \sigma^2 \sum_i \mathrm{Tr}[H_i]`, an identity for a quadratic
loss; that Hessian approximation is reported beside it, with the relative residual sum of squares over the grid,
:math:`\sum_\sigma (I - \tfrac12\sigma^2\mathrm{Tr}H)^2 / \sum_\sigma I^2`, and with a statement, for every sigma, whether the loss is
still quadratic at that distance.

The value is Monte Carlo alone: antithetic pairs (the odd orders cancel), with an independent U for every block of 16 samples,
and more draws for the blocks with the larger spread. A first round shares each U among all samples. It gives the spread over
shared draws (``std``, of one-sided draws, what papers print after a plus-minus sign) and decides how many draws follow; its
values do not enter the mean. The same standard normals serve the whole grid.

Cost:
    Two forward passes for each sigma and draw.
Variance:
    ``sem`` is the standard error of the mean over the draws.

References:
    Ju, Li & Zhang, ICML 2022. Neyman, On the two different aspects of the representative method, JRSS, 1934 (allocation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from genbound.errors import GenboundError
from genbound.estimators.allocation import allocate
from genbound.estimators.estimate import data_sem, stratified_mean
from genbound.estimators.random import normal
from genbound.problem import BLOCK
from genbound.quantities.base import Context, Measured, Part, Quantity, check_options, stack, stream

NAME = "noise_stability"
SMALL = 2**26  # samples x weights x draws that take seconds: small problems get better errors


@dataclass(frozen=True)
class NoiseStabilityOptions:
    """Options of ``noise_stability``.

    Attributes:
        sigmas: standard deviations of the noise.
        relative_sem: wanted standard error, relative to the value.
        num_shared: antithetic pairs of the shared first round.
        max_perturbations: cap on the mean number of antithetic pairs per block of samples; a small problem may take more,
            see SMALL.
    """

    sigmas: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02)
    relative_sem: float = 0.05
    num_shared: int = 4
    max_perturbations: int = 16

    def __post_init__(self):
        check_options(self, relative_sem=0)
        if not self.sigmas or any(not (0 < s < float("inf")) for s in self.sigmas):
            raise GenboundError(f"sigmas {list(self.sigmas)} must be positive numbers")
        if list(self.sigmas) != sorted(set(self.sigmas)):
            raise GenboundError(f"sigmas {list(self.sigmas)} must increase, each given once")
        if self.num_shared < 2:
            raise GenboundError(f"num_shared {self.num_shared} must be at least 2: one draw has no spread")


def _rises(problem, positions: list[int], key, base: np.ndarray, sigmas, context: Context) -> np.ndarray:
    """``l(W + U) - l(W)`` and ``l(W - U) - l(W)`` of each sample, ``[N, S, 2]``, for one draw of the normals."""
    noise, source = {}, stream(context, NAME, *key)
    for layer in problem.layers:
        noise[layer.name] = normal(layer.shape, source, problem.params[layer.name])
    values = np.zeros((len(positions), len(sigmas), 2))
    row = {p: i for i, p in enumerate(positions)}
    for run in problem.batches(positions):
        batch, rows = problem.batch(run), [row[p] for p in run]
        for s, sigma in enumerate(sigmas):
            for sign, scale in ((0, sigma), (1, -sigma)):
                moved = {name: problem.params[name].add(u, alpha=scale) for name, u in noise.items()}
                with torch.no_grad():
                    outputs = problem.forward({**problem.params, **moved}, batch.inputs)
                    losses = problem.loss.per_sample(outputs, batch.targets)
                values[rows, s, sign] = losses.double().cpu().numpy() - base[rows]
    return values


def _base(problem, positions: list[int]) -> np.ndarray:
    base, row = np.zeros(len(positions)), {p: i for i, p in enumerate(positions)}
    for run in problem.batches(positions):
        batch = problem.batch(run)
        with torch.no_grad():
            outputs = problem.forward(problem.params, batch.inputs)
            losses = problem.loss.per_sample(outputs, batch.targets)
        base[[row[p] for p in run]] = losses.double().cpu().numpy()
    return base


def measure(problem, context: Context) -> Measured:
    options: NoiseStabilityOptions = context.options
    sigmas, shards = options.sigmas, problem.shards()

    blocks = problem.blocks(range(problem.num_samples))
    sizes = np.array([len(members) for _, members in blocks])
    num_shared = max(
        options.num_shared, -(-64 // len(blocks))
    )  # with few blocks each one's spread must be known better

    def shared(item: tuple[int, range]) -> Part:
        draw, positions = item[0], list(item[1])
        return {"rise": _rises(problem, positions, ("shared", draw), _base(problem, positions), sigmas, context)}

    items = [(draw, shard) for draw in range(num_shared) for shard in shards]
    parts = context.map("shared", items, shared)
    per_draw = [stack(parts[d * len(shards) : (d + 1) * len(shards)], "rise") for d in range(num_shared)]
    first = np.stack(per_draw, 1)  # [N, D, S, 2]

    trace = context.measured["hessian_trace"].summary["total"]
    weights = sum(layer.num_weights for layer in problem.layers)
    budget = max(options.max_perturbations, min(2**14 // len(blocks), SMALL // (problem.num_samples * weights)))
    num_draws = _allocation(options, budget, first, blocks, trace["value"])

    def independent(item: tuple[int, list[int]]) -> Part:
        block, members = item
        base = _base(problem, members)
        rises = [
            _rises(problem, members, ("draws", block, draw), base, sigmas, context).mean(2).sum(0)
            for draw in range(num_draws[block])
        ]
        sums = np.stack(rises)  # [D, S] of the block's sum
        square = ((sums - sums.mean(0)) ** 2).sum(0)
        return {"mean": sums.mean(0)[None], "squares": square[None], "count": np.array([len(sums)])}

    drawn = context.map("draws", blocks, independent)
    count, mean, squares = stack(drawn, "count"), stack(drawn, "mean"), stack(drawn, "squares")
    value, sem = stratified_mean(count, mean, squares)
    scale = len(blocks) / problem.num_samples  # from mean block sum to mean over the samples
    value, sem = value * scale, sem * scale
    # The choice of samples, from the spread of the block means.
    spread = data_sem(
        mean / sizes[:, None], squares / (count - 1)[:, None] / count[:, None] / sizes[:, None] ** 2,
        max(len(blocks), round(problem.num_data / BLOCK)),
    )  # fmt: skip
    if problem.num_samples >= problem.num_data:
        spread = np.zeros_like(spread)
    std = _std_over_shared_draws(first.mean(0))
    rows = []
    for i, sigma in enumerate(sigmas):
        rows.append(
            {
                "sigma": sigma,
                "value": float(value[i]),
                "sem": float(sem[i]),
                "data_sem": float(spread[i]),
                "std": float(std[i]),
                "hessian_approximation": 0.5 * sigma**2 * trace["value"],
                "hessian_approximation_sem": 0.5 * sigma**2 * trace["sem"],
                "quadratic_regime": is_quadratic(float(value[i]), float(sem[i]), sigma, trace["value"], trace["sem"]),
                "num_perturbations": int(2 * count.sum()),
                "num_samples": problem.num_samples,
            }
        )
    leaves = next((row["sigma"] for row in rows if not row["quadratic_regime"]), None)
    summary = {
        "sigmas": rows,
        "relative_rss": relative_rss(value, [row["hessian_approximation"] for row in rows]),
        "leaves_quadratic_regime_at": leaves,
    }
    return Measured(summary)


def _std_over_shared_draws(rises: np.ndarray) -> np.ndarray:
    """Standard deviation of the mean loss's rise over one-sided draws, from antithetic pairs ``[D, S, 2]``.

    The even and the odd part of the rise are uncorrelated, and the odd one has mean zero.
    """
    even, odd = rises.mean(2), 0.5 * (rises[..., 0] - rises[..., 1])
    return np.sqrt(even.var(0, ddof=1) + (odd**2).mean(0))


def _allocation(options: NoiseStabilityOptions, budget: int, first: np.ndarray, blocks, trace: float) -> np.ndarray:
    """Draws per block. The scale of the value is the Hessian approximation's, or the first round's where that is larger."""
    even = first.mean(3)  # [N, D, S] antithetic means
    sums = np.stack([even[members].sum(0) for _, members in blocks])  # [B, D, S]
    rough, error = even.mean((0, 1)), even.mean(0).std(0, ddof=1) / np.sqrt(even.shape[1])
    size = np.maximum(0.5 * np.square(options.sigmas) * abs(trace), np.abs(rough) - 2 * error)
    wanted = options.relative_sem * size * even.shape[0] / len(blocks)
    variances = sums.var(1, ddof=1)
    return allocate(
        variances, wanted,
        minimum=max(4, -(-64 // len(blocks))), budget=budget,
    )  # fmt: skip


def relative_rss(values, approximations) -> float | None:
    """``sum (I - HA)^2 / sum I^2`` over the grid of sigmas; ``None`` where the loss does not move at all."""
    values, approximations = np.asarray(values, float), np.asarray(approximations, float)
    if not values.any():
        return None
    return float(((values - approximations) ** 2).sum() / (values**2).sum())


def is_quadratic(
    value: float, sem: float, sigma: float, trace: float, trace_sem: float, tolerance: float = 0.1
) -> bool:
    """Whether ``I(sigma) / sigma^2`` agrees with ``Tr H / 2``: within 10 % of it, beside two combined standard errors."""
    approximation = 0.5 * sigma**2 * trace
    error = np.hypot(sem, 0.5 * sigma**2 * trace_sem)
    return bool(abs(value - approximation) <= tolerance * abs(approximation) + 2 * error)


def forecast(problem, options: NoiseStabilityOptions) -> float:
    """A gradient is about three forward passes."""
    return 2 * len(options.sigmas) * (options.num_shared + options.max_perturbations / 2) / 3


QUANTITY = Quantity(
    NAME,
    "rise of the loss under Gaussian weight noise over a grid of sigmas, beside its Hessian approximation",
    measure,
    NoiseStabilityOptions,
    requires=("hessian_trace",),
    gradients=forecast,
    reference="Ju, Li & Zhang 2022",
)
