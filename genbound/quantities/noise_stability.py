r"""How much the loss rises under Gaussian noise on the weights, by Monte Carlo.

.. math:: I(\sigma) = \mathbb E_{U}\,[\hat L(f_{W+U})] - \hat L(f_W), \qquad U_i \sim \mathcal N(0, \sigma^2 I)

on the weights of all layers. To second order it is :math:`\tfrac12 \sigma^2 \sum_i \mathrm{Tr}[H_i]`, an identity for a quadratic
loss; that Hessian approximation is reported beside it, with the relative residual sum of squares over the grid,
:math:`\sum_\sigma (I - \tfrac12\sigma^2\mathrm{Tr}H)^2 / \sum_\sigma I^2`, and with a statement, for every sigma, whether the loss is
still quadratic at that distance.

The value is Monte Carlo: antithetic pairs (the odd orders cancel), an independent U for every sample, drawn in activation
space (:mod:`genbound.curvature.noise_by_row`), and more draws for the samples with the larger spread. A pilot round finds
that spread; its values do not enter the mean. Most samples of a large set get a single draw; some of these are chosen beforehand
for a second one, which tells the variance of all (:func:`genbound.estimators.allocation.choose_doubles`). The same standard
normals serve the whole grid. A network with a layer that cannot be moved row by row (a weight used twice, or by an operation that is not recognised) has an independent U for every
block of 16 samples instead, added to the weights.

Near W most of a draw's spread is that of its second-order term :math:`c = \tfrac12 U^\top H U`, which tangents give exactly for the same
noise (:mod:`genbound.curvature.sweep`) and whose mean :math:`\tfrac12 \mathrm{Tr}\,H` is measured by ``hessian_trace`` with draws of its own. So c is a
control variate: the mean of :math:`y - \beta_\sigma c` plus :math:`\beta_\sigma\,\tfrac12\mathrm{Tr}\,H` is unbiased for any slope fixed beforehand; it comes from the
pilot, and is 0 where the trace is known too badly to help (which is judged by its own value: near that limit, 5 % by default, the trace is taken
more often when it came out large, by less than half of its error). ``sem`` holds both errors. Far from W the slope falls, and with it what is saved: each sigma gets as many draws as it needs.

``std`` is another number: the spread over draws *shared* by all samples, what papers print after a plus-minus sign, of one-sided
draws on at most ``max_shared_samples`` samples.

Cost:
    Two forward passes for each sigma and draw, ``2 x 5`` for one draw on the default grid; one to two more for c.
Variance:
    ``sem`` is the standard error of the mean over the draws: per sample, ``sigma^4 ||H||_F^2 / 2`` for a pair in the quadratic
    regime, without the part that c explains.

References:
    Ju, Li & Zhang, ICML 2022. Neyman, On the two different aspects of the representative method, JRSS, 1934 (allocation).
"""

from __future__ import annotations

import numpy as np
import torch

from genbound.curvature.noise_by_row import Normals, can_move_rows, noise_directions, noisy_losses
from genbound.curvature.sweep import Sweep
from genbound.curvature.sweep_trial import can_sweep
from genbound.estimators.allocation import allocate, choose_doubles, choose_pilot, predict
from genbound.estimators.estimate import data_sem, stratified_mean, stratum_variances
from genbound.estimators.random import BLOCK, normal, row_of
from genbound.quantities.base import Context, Measured, Part, stack, stream
from genbound.quantities.catalogue.noise_stability import NoiseStabilityOptions

NAME = "noise_stability"
DRAWS = 128  # whose results are stored together
PILOT = 96  # most samples of the pilot round
PAYS = 0.6  # part of a draw's variance that a control may leave
SAFETY = 0.8  # the spread is known from a small pilot only
SMALL = 2**26  # samples x weights x draws that take seconds: small problems get better errors


# A draw of the noise: the positions it moves, and the key of its random numbers (for one sample, a stream and its member).
Draw = tuple[list[int], tuple]


class _MovedWeights:
    """The same noise on the weights of all samples of a draw."""

    most_draws = 2**11  # each takes two forward passes for every sigma, however few its samples

    def __init__(self, problem, context: Context):
        self.problem, self.context = problem, context
        self.strata = [members for _, members in problem.blocks(range(problem.num_samples))]

    def draws(self, stratum: int, num: int, kind: str) -> list[Draw]:
        return [(self.strata[stratum], (kind, stratum, draw)) for draw in range(num)]

    def rises(self, draws: list[Draw], base: np.ndarray, sigmas, controlled: bool) -> tuple[np.ndarray, np.ndarray]:
        """Sum over each draw's positions of the mean of ``l(W +- sigma U) - l(W)``, ``[draws, S]``, and its control ``[draws]``."""
        rises = np.stack([self.each(*draw, base, sigmas).sum(0).mean(1) for draw in draws])
        return rises, np.zeros(len(draws))

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
        self.controlled = can_sweep(problem)
        self._sweep: Sweep | None = None

    def draws(self, stratum: int, num: int, kind: str) -> list[Draw]:
        return [([stratum], row_of(kind, stratum, draw, num)) for draw in range(num)]

    def rises(self, draws: list[Draw], base: np.ndarray, sigmas, controlled: bool) -> tuple[np.ndarray, np.ndarray]:
        problem, values, done = self.problem, np.zeros((len(draws), len(sigmas))), 0
        control = np.zeros(len(draws))
        for run in problem.batches([positions[0] for positions, _ in draws]):
            rows = [(p, (NAME, *key), member) for p, (_, (key, member)) in zip(run, draws[done:], strict=False)]
            normals = Normals(rows, self.context.seed, problem.params[problem.layers[0].name])
            now = slice(done, done + len(run))
            if self._sweep is not None and self._sweep.positions != run:
                self._sweep = None  # before the next passes take memory
            # Read back together: an accelerator is waited for once a batch.
            losses = torch.stack([noisy_losses(problem, rows, normals, (sigma, -sigma)).mean(0) for sigma in sigmas], 1)
            values[now] = losses.double().cpu().numpy() - base[run][:, None]
            if controlled and self.controlled:
                if self._sweep is None:
                    self._sweep = Sweep(problem, run)
                control[now] = 0.5 * self._sweep.hessian(*noise_directions(self._sweep, normals)).cpu().numpy()
            done += len(run)
        return values, control


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


def _alike(totals: list[int]) -> list[list[int]]:
    """Neighbouring sigmas that take about as many draws, within a factor of two, and so share them."""
    groups: list[list[int]] = []
    for i, total in enumerate(totals):
        if groups and max(total, *(totals[j] for j in groups[-1])) <= 2 * min(total, *(totals[j] for j in groups[-1])):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _drawn(
    context: Context, stage: str, kind: str, noise, counts, base: np.ndarray, sigmas, controlled: bool = True
) -> tuple[np.ndarray, ...]:
    """Every draw's antithetic rise ``[D, S]``, its control ``[D]`` (zero if it is not asked for) and its stratum ``[D]``."""
    # Strata with equal counts side by side, so that batches are full and their normals come from the same streams; a batch's
    # draws one after another, so that what is recorded of it serves them all.
    order = [s for s in sorted(range(len(counts)), key=lambda s: (counts[s], s)) if counts[s]]
    few = [[(s, draw) for draw in noise.draws(s, counts[s], kind)] for s in order if counts[s] < BLOCK]
    pairs = []
    for start in range(0, len(few), BLOCK):
        group = few[start : start + BLOCK]
        pairs += [own[d] for d in range(max(map(len, group))) for own in group if d < len(own)]
    pairs += [(s, draw) for s in order if counts[s] >= BLOCK for draw in noise.draws(s, counts[s], kind)]
    items = [[draw for _, draw in pairs[i : i + DRAWS]] for i in range(0, len(pairs), DRAWS)]

    def part(draws) -> Part:
        rise, control = noise.rises(draws, base, sigmas, controlled)
        return {"rise": rise, "control": control}

    parts = context.map(stage, items, part)
    return stack(parts, "rise"), stack(parts, "control"), np.array([s for s, _ in pairs])


def _moments(values: np.ndarray, owner: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations of every stratum's draws, ``[strata, S]``."""
    mean, squares = np.zeros((len(counts), *values.shape[1:])), np.zeros((len(counts), *values.shape[1:]))
    np.add.at(mean, owner, values)
    mean /= np.maximum(counts, 1)[:, None]
    np.add.at(squares, owner, (values - mean[owner]) ** 2)
    return mean, squares


def _slopes(rises: np.ndarray, control: np.ndarray, owner: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Best slope of the rise in the control for each sigma ``[S]``; 0 where the control explains less than it costs."""
    both, _ = _moments(np.column_stack([rises, control]), owner, counts)
    y, c = rises - both[owner, :-1], control - both[owner, -1]
    # Draws are given in proportion to a stratum's spread: its variance counts by the inverse of that.
    spread = np.sqrt(np.bincount(owner, c**2, len(counts)) / np.maximum(counts - 1, 1))[owner]
    weight = np.divide(1.0, spread, out=np.zeros_like(c), where=spread > 0)
    if not weight.any():
        return np.zeros(rises.shape[1])
    slope = (weight[:, None] * y * c[:, None]).sum(0) / (weight * c**2).sum()
    left = (weight[:, None] * (y - slope * c[:, None]) ** 2).sum(0)
    return np.where(left <= PAYS * (weight[:, None] * y**2).sum(0), slope, 0.0)


def _plan(problem, context: Context, noise, base, expected, trace) -> tuple[np.ndarray, list[np.ndarray]]:
    """From a pilot round: slope of the control for each sigma ``[S]``, and draws of every stratum for each sigma."""
    options, num = context.options, len(noise.strata)
    piloted, _ = choose_pilot(expected, PILOT)
    # Few strata: each one's spread must be known better.
    num_pilot = max(options.num_pilot, -(-128 // len(piloted)))
    counts = np.zeros(num, dtype=int)
    counts[piloted] = num_pilot
    rises, control, owner = _drawn(context, "pilot", "pilot", noise, counts.tolist(), base, options.sigmas)
    slopes, num_draws = _slopes(rises, control, owner, counts), []
    weights = sum(layer.num_weights for layer in problem.layers)
    budget = max(options.max_perturbations, min(noise.most_draws // num, SMALL // (problem.num_samples * weights)))
    for i, sigma in enumerate(options.sigmas):
        # Beyond the quadratic regime the value is larger than that, or has met its ceiling and spreads less.
        target = SAFETY * options.relative_sem * 0.5 * sigma**2 * abs(trace["value"])
        known = 0.5 * slopes[i] * trace["sem"]
        if known > target / SAFETY:
            slopes[i] = known = 0.0  # the mean of the control is not known well enough
        target = np.sqrt(max(target**2 - known**2, 0.2 * target**2))
        pilot = _moments((rises[:, i] - slopes[i] * control)[:, None], owner, counts)[1][piloted] / (num_pilot - 1)
        num_draws.append(allocate(
            predict(pilot, np.array(piloted), expected, num_pilot), np.array([target * problem.num_samples / num]),
            minimum=-(-128 // num), budget=budget,
        ))  # fmt: skip
    return slopes, num_draws


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

    trace = context.measured["hessian_trace"].summary["total"]
    expected = np.array([np.linalg.norm(gradients[members]) for members in noise.strata])
    slopes, num_draws = _plan(problem, context, noise, base, expected, trace)
    scale = len(sizes) / problem.num_samples
    rows = []
    for group in _alike([int(n.sum()) for n in num_draws]):
        own, counts = tuple(sigmas[i] for i in group), np.max([num_draws[i] for i in group], axis=0)
        doubles = choose_doubles(counts, expected)
        counts = counts + doubles
        slope = slopes[list(group)]
        rises, control, owner = _drawn(
            context, f"draws {own[0]:g}", "draws", noise, counts.tolist(), base, own, controlled=bool(slope.any())
        )
        mean, squares = _moments(rises - slope * control[:, None], owner, counts)
        value, sem = stratified_mean(counts, mean, stratum_variances(counts, squares, doubles))
        # From the mean over strata of sums to the mean over the samples, and the control's mean put back.
        value = value * scale + slope * 0.5 * trace["value"]
        alone = sem * scale
        sem = np.hypot(alone, slope * 0.5 * trace["sem"])
        # The choice of samples, from the spread of the strata's means.
        mean, squares = _moments(rises, owner, counts)
        variances = stratum_variances(counts, squares, doubles) / counts[:, None]
        spread = data_sem(
            mean / sizes[:, None], variances / sizes[:, None] ** 2, max(len(sizes), round(problem.num_data * scale))
        )
        if problem.num_samples >= problem.num_data:
            spread = np.zeros_like(spread)
        for k, i in enumerate(group):
            approximation = 0.5 * sigmas[i] ** 2 * trace["value"]
            # Of value - approximation: both hold the trace, and what it is wrong by is the same in both.
            apart = np.hypot(alone[k], 0.5 * (slope[k] - sigmas[i] ** 2) * trace["sem"])
            rows.append(
                {
                    "sigma": sigmas[i],
                    "value": float(value[k]),
                    "sem": float(sem[k]),
                    "data_sem": float(spread[k]),
                    "std": float(std[i]),
                    "hessian_approximation": approximation,
                    "hessian_approximation_sem": 0.5 * sigmas[i] ** 2 * trace["sem"],
                    "quadratic_regime": is_quadratic(float(value[k]), approximation, float(apart)),
                    "control_slope": float(slope[k] / sigmas[i] ** 2),
                    "num_perturbations": int(2 * counts.sum()),
                    "num_samples": problem.num_samples,
                }
            )
    rows.sort(key=lambda row: row["sigma"])
    leaves = next((row["sigma"] for row in rows if not row["quadratic_regime"]), None)
    summary = {
        "sigmas": rows,
        "relative_rss": relative_rss([row["value"] for row in rows], [row["hessian_approximation"] for row in rows]),
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


def is_quadratic(value: float, approximation: float, error: float, tolerance: float = 0.1) -> bool:
    """Whether ``I(sigma)`` agrees with ``sigma^2 Tr H / 2``: within 10 % of it, beside two standard errors of the difference."""
    return bool(abs(value - approximation) <= tolerance * abs(approximation) + 2 * error)


def forecast(problem, options: NoiseStabilityOptions) -> float:
    """A gradient is about three forward passes. A few pairs a sample are common, the second-order term of one costs five passes."""
    num = problem.num_samples
    shared = options.num_shared * min(1.0, options.max_shared_samples / num)
    pilot = max(options.num_pilot * min(1.0, PILOT / num), 128 / num)
    return (2 * len(options.sigmas) * (shared + pilot + min(4, options.max_perturbations)) + 5) / 3
