r"""How much the loss rises under Gaussian noise on the weights, by Monte Carlo.

.. math:: I(\sigma) = \mathbb E_{U}\,[\hat L(f_{W+U})] - \hat L(f_W), \qquad U_i \sim \mathcal N(0, \sigma^2 I)

on the weights of all layers. To second order it is :math:`\tfrac12 \sigma^2 \sum_i \mathrm{Tr}[H_i]`, an identity for a quadratic
loss; that Hessian approximation is reported beside it, with the relative residual sum of squares over the grid,
:math:`\sum_\sigma (I - \tfrac12\sigma^2\mathrm{Tr}H)^2 / \sum_\sigma I^2`, and with a statement, for every sigma, whether the loss is
still quadratic at that distance.

The value is Monte Carlo alone: antithetic pairs (the odd orders cancel), an independent U for every sample, drawn in activation
space (:mod:`genbound.curvature.noise`), and more draws for the samples with the larger spread. A pilot round at one sigma finds
that spread; its values do not enter the mean. The same standard normals serve the whole grid. A network with a layer that
cannot be moved row by row (a weight used twice, or by an operation that is not recognised) has an independent U for every
block of 16 samples instead, added to the weights.

``std`` is another number: the spread over draws *shared* by all samples, what papers print after a plus-minus sign, of one-sided
draws on at most ``max_shared_samples`` samples.

Cost:
    Two forward passes for each sigma and draw, ``2 x 5`` for one draw on the default grid.
Variance:
    ``sem`` is the standard error of the mean over the draws: per sample, ``sigma^4 ||H||_F^2 / 2`` for a pair in the quadratic
    regime.

References:
    Ju, Li & Zhang, ICML 2022. Neyman, On the two different aspects of the representative method, JRSS, 1934 (allocation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from genbound.curvature.noise import Normals, can_move_rows, noisy_losses
from genbound.errors import GenboundError
from genbound.estimators.allocation import allocate, shrink
from genbound.estimators.estimate import data_sem, stratified_mean
from genbound.estimators.random import normal
from genbound.problem import BLOCK
from genbound.quantities.base import Context, Measured, Part, Quantity, check_options, stack, stream

NAME = "noise_stability"
DRAWS = 128  # whose results are stored together
SAFETY = 0.8  # the spread is known from a small pilot only
SMALL = 2**26  # samples x weights x draws that take seconds: small problems get better errors


@dataclass(frozen=True)
class NoiseStabilityOptions:
    """Options of ``noise_stability``.

    Attributes:
        sigmas: standard deviations of the noise.
        relative_sem: wanted standard error, relative to the value.
        num_pilot: antithetic pairs of the pilot round.
        max_perturbations: cap on the mean number of antithetic pairs per sample (per block of 16, where the weights
            themselves are moved); a small problem may take more, see SMALL.
        num_shared: antithetic pairs of the round that all samples share.
        max_shared_samples: samples of that round.
    """

    sigmas: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02)
    relative_sem: float = 0.05
    num_pilot: int = 2
    max_perturbations: int = 16
    num_shared: int = 4
    max_shared_samples: int = 64

    def __post_init__(self):
        check_options(self, relative_sem=0, num_pilot=2, max_shared_samples=1)
        if not self.sigmas or any(not (0 < s < float("inf")) for s in self.sigmas):
            raise GenboundError(f"sigmas {list(self.sigmas)} must be positive numbers")
        if list(self.sigmas) != sorted(set(self.sigmas)):
            raise GenboundError(f"sigmas {list(self.sigmas)} must increase, each given once")
        if self.num_shared < 2:
            raise GenboundError(f"num_shared {self.num_shared} must be at least 2: one draw has no spread")


# A draw of the noise: the positions it moves, and the key of its random numbers.
Draw = tuple[list[int], tuple]


class _MovedWeights:
    """The same noise on the weights of all samples of a draw."""

    most_draws = 2**11  # each takes two forward passes for every sigma, however few its samples

    def __init__(self, problem, context: Context):
        self.problem, self.context = problem, context
        self.strata = [members for _, members in problem.blocks(range(problem.num_samples))]

    def draws(self, stratum: int, num: int, kind: str) -> list[Draw]:
        return [(self.strata[stratum], (kind, stratum, draw)) for draw in range(num)]

    def rises(self, draws: list[Draw], base: np.ndarray, sigmas) -> np.ndarray:
        """Sum over each draw's positions of ``l(W +- sigma U) - l(W)``, ``[draws, S, 2]``."""
        return np.stack([self.each(*draw, base, sigmas).sum(0) for draw in draws])

    def each(self, positions: list[int], key: tuple, base: np.ndarray, sigmas) -> np.ndarray:
        """The same of each sample of one draw, ``[N, S, 2]``."""
        problem, noise, source = self.problem, {}, stream(self.context, NAME, *key)
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
                    values[rows, s, sign] = losses.double().cpu().numpy() - base[run]
        return values


class _MovedRows:
    """Noise of its own for every sample and draw, in activation space."""

    most_draws = 2**14

    def __init__(self, problem, context: Context):
        self.problem, self.context = problem, context
        self.strata = [[p] for p in range(problem.num_samples)]

    def draws(self, stratum: int, num: int, kind: str) -> list[Draw]:
        # Normals come in groups of 16: the first draws of 16 samples, or 16 draws of a sample that gets many.
        if num < BLOCK:
            return [([stratum], (kind, stratum // BLOCK, draw, stratum % BLOCK)) for draw in range(num)]
        return [([stratum], (kind, "many", stratum, draw // BLOCK, draw % BLOCK)) for draw in range(num)]

    def rises(self, draws: list[Draw], base: np.ndarray, sigmas) -> np.ndarray:
        problem, values, done = self.problem, np.zeros((len(draws), len(sigmas), 2)), 0
        for run in problem.batches([positions[0] for positions, _ in draws]):
            rows = [(p, (NAME, *key[:-1]), key[-1]) for p, (_, key) in zip(run, draws[done:], strict=False)]
            normals = Normals(rows, self.context.seed, problem.params[problem.layers[0].name])
            # Read back together: an accelerator is waited for once a batch.
            losses = torch.stack([noisy_losses(problem, rows, normals, (sigma, -sigma)) for sigma in sigmas])
            values[done : done + len(run)] = losses.double().permute(2, 0, 1).cpu().numpy() - base[run][:, None, None]
            done += len(run)
        return values


def _base(problem, positions) -> Part:
    base, sizes, row = np.zeros(len(positions)), np.zeros(len(positions)), {p: i for i, p in enumerate(positions)}
    for run in problem.batches(positions):
        batch = problem.batch(run)
        with torch.no_grad():
            outputs = problem.forward(problem.params, batch.inputs)
            losses = problem.loss.per_sample(outputs, batch.targets)
        rows = [row[p] for p in run]
        base[rows] = losses.double().cpu().numpy()
        gradient = problem.loss.output_gradient(outputs, batch.targets)
        sizes[rows] = gradient.flatten(1).norm(dim=1).double().cpu().numpy()
    return {"loss": base, "size": sizes}


def _moments(context: Context, name: str, noise, counts, base: np.ndarray, sigmas) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations of the antithetic rises of every stratum, ``[strata, S]``."""
    # Strata with equal counts side by side, so that batches are full and their normals come from the same streams.
    order = sorted(range(len(counts)), key=lambda s: (counts[s], s))
    draws = [draw for s in order for draw in ([] if counts[s] < BLOCK else noise.draws(s, counts[s], name))]
    few = [[(s, draw) for draw in noise.draws(s, counts[s], name)] for s in order if counts[s] < BLOCK]
    deepest = max(map(len, few), default=0)
    pairs = [own[d] for d in range(deepest) for own in few if d < len(own)]
    owner = [s for s, _ in pairs] + [s for s in order if counts[s] >= BLOCK for _ in range(counts[s])]
    draws = [draw for _, draw in pairs] + draws
    items = [draws[i : i + DRAWS] for i in range(0, len(draws), DRAWS)]
    parts = context.map(name, items, lambda some: {"rise": noise.rises(some, base, sigmas).mean(2)})
    rises, owner = stack(parts, "rise"), np.array(owner)
    counts = np.asarray(counts)
    mean, squares = np.zeros((len(counts), len(sigmas))), np.zeros((len(counts), len(sigmas)))
    np.add.at(mean, owner, rises)
    mean /= counts[:, None]
    np.add.at(squares, owner, (rises - mean[owner]) ** 2)
    return mean, squares


def measure(problem, context: Context) -> Measured:
    options: NoiseStabilityOptions = context.options
    sigmas = options.sigmas
    parts = context.map("base", problem.shards(), lambda positions: _base(problem, positions))
    base, gradients = stack(parts, "loss"), stack(parts, "size")
    noise = (_MovedRows if can_move_rows(problem) else _MovedWeights)(problem, context)
    sizes = np.array([len(members) for members in noise.strata])

    every = range(0, problem.num_samples, -(-problem.num_samples // options.max_shared_samples))
    shared = context.map(
        "shared", list(range(options.num_shared)),
        lambda draw: {"rise": _MovedWeights(problem, context).each(list(every), ("shared", draw), base, sigmas)},
    )  # fmt: skip
    std = _std_over_shared_draws(np.stack([part["rise"].mean(0) for part in shared]))

    # Few strata: each one's spread must be known better.
    num_pilot = max(options.num_pilot, -(-128 // len(sizes)))
    middle = sigmas[len(sigmas) // 2]
    pilot = _moments(context, "pilot", noise, [num_pilot] * len(sizes), base, (middle,))[1] / (num_pilot - 1)
    trace = context.measured["hessian_trace"].summary["total"]
    weights = sum(layer.num_weights for layer in problem.layers)
    budget = max(
        options.max_perturbations, min(noise.most_draws // len(sizes), SMALL // (problem.num_samples * weights))
    )
    # In the quadratic regime the spread of a draw and the value both grow as sigma^2: one sigma decides for all.
    size = 0.5 * middle**2 * abs(trace["value"]) * problem.num_samples / len(sizes)
    expected = np.array([np.linalg.norm(gradients[members]) for members in noise.strata])
    counts = allocate(
        shrink(pilot, expected, num_pilot),
        np.array([SAFETY * options.relative_sem * size]),
        minimum=max(2, -(-128 // len(sizes))),
        budget=budget,
    )

    mean, squares = _moments(context, "draws", noise, counts.tolist(), base, sigmas)
    value, sem = stratified_mean(counts, mean, squares)
    scale = len(sizes) / problem.num_samples  # from the mean over strata of sums to the mean over the samples
    value, sem = value * scale, sem * scale
    # The choice of samples, from the spread of the strata's means.
    spread = data_sem(
        mean / sizes[:, None], squares / (counts - 1)[:, None] / counts[:, None] / sizes[:, None] ** 2,
        max(len(sizes), round(problem.num_data * scale)),
    )  # fmt: skip
    if problem.num_samples >= problem.num_data:
        spread = np.zeros_like(spread)
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
                "num_perturbations": int(2 * counts.sum()),
                "num_samples": problem.num_samples,
            }
        )
    leaves = next((row["sigma"] for row in rows if not row["quadratic_regime"]), None)
    summary = {
        "sigmas": rows,
        "relative_rss": relative_rss(value, [row["hessian_approximation"] for row in rows]),
        "leaves_quadratic_regime_at": leaves,
        "noise": "per sample" if isinstance(noise, _MovedRows) else f"per block of {BLOCK} samples",
        "std_num_samples": len(every),
    }
    return Measured(summary)


def _std_over_shared_draws(rises: np.ndarray) -> np.ndarray:
    """Standard deviation of the mean loss's rise over one-sided draws, from antithetic pairs ``[D, S, 2]``.

    The even and the odd part of the rise are uncorrelated, and the odd one has mean zero.
    """
    even, odd = rises.mean(2), 0.5 * (rises[..., 0] - rises[..., 1])
    return np.sqrt(even.var(0, ddof=1) + (odd**2).mean(0))


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
    """A gradient is about three forward passes; four draws a sample are common."""
    shared = options.num_shared * min(1.0, options.max_shared_samples / problem.num_samples)
    return 2 * (len(options.sigmas) * (shared + min(4, options.max_perturbations)) + options.num_pilot) / 3


QUANTITY = Quantity(
    NAME,
    "rise of the loss under Gaussian weight noise over a grid of sigmas, beside its Hessian approximation",
    measure,
    NoiseStabilityOptions,
    requires=("hessian_trace",),
    gradients=forecast,
    reference="Ju, Li & Zhang 2022",
)
