r"""Draws of Gaussian noise on the weights, and how much each raises the loss.

A *draw* is a U with independent standard normal entries. It is used with both signs, which cancels the odd orders:
its *rise* at :math:`\sigma` is the mean of :math:`\ell(W + \sigma U)` and :math:`\ell(W - \sigma U)`, less
:math:`\ell(W)`. The samples that share a draw are a *stratum*: one sample alone (:class:`NoisePerSample`), or a block
of samples (:class:`NoisePerBlock`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from genbound.curvature.noise_by_row import Normals, can_move_rows, noise_directions, noisy_losses, row_bytes_on
from genbound.curvature.sweep import Sweep
from genbound.curvature.sweep_trial import can_sweep
from genbound.estimators.random import BLOCK, normal, row_of
from genbound.network.memory import most_held
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Part, stack, stream

NAME = "noise_stability"
NEAR, NEAR_DRAWS = 16, 4  # roundings that near weights differ by, relative to each; pairs of them
NEAR_BYTES = 2**29  # of all weights, up to which near ones are tried

# A draw of the noise: the positions that it moves, and the key of its random numbers (for one sample, a stream and its
# member).
Draw = tuple[list[int], tuple]


class NoisePerBlock:
    """The same noise for all samples of a block, added to the weights.

    Args:
        problem: what is measured.
        context: of the measurement.
        losses: of every sample without noise ``[N]``, in the loss's unit.

    Attributes:
        strata: the positions of each stratum.
        most_draws: of all strata together, that take seconds in a small problem.
        summary: one phrase for the tables.
    """

    most_draws = 2**11  # each takes two forward passes for every sigma, however few its samples
    summary = f"per block of {BLOCK} samples"

    def __init__(self, problem: Problem, context: Context, losses: np.ndarray):
        self._problem, self._context, self._losses = problem, context, losses
        self.strata = [members for _, members in problem.blocks(range(problem.num_samples))]

    def draws(self, stratum: int, num: int, kind: str) -> list[Draw]:
        """``num`` independent draws for a stratum. Other kinds have other random numbers."""
        return [(self.strata[stratum], (kind, stratum, draw)) for draw in range(num)]

    def rises(self, draws: Sequence[Draw], sigmas: Sequence[float], controlled: bool) -> tuple[np.ndarray, np.ndarray]:
        r"""The rise summed over each draw's samples ``[draws, S]``, and its second-order term at sigma 1 ``[draws]``.

        Each sample's by how much it counts.
        The latter, :math:`\tfrac12 U^\top H U`, is zero where it is not known or not asked for.
        """
        shares = self._problem.shares[:, None, None]
        rises = np.stack([(self.each(*draw, sigmas) * shares[draw[0]]).sum(0).mean(1) for draw in draws])
        return rises, np.zeros(len(draws))

    def each(self, positions: Sequence[int], key: tuple, sigmas: Sequence[float]) -> np.ndarray:
        """Rise of the loss of each of the samples under one draw, for either sign of it, ``[n, S, 2]``."""
        problem, source = self._problem, stream(self._context, NAME, *key)
        noise = {layer.name: normal(layer.shape, source, problem.params[layer.name]) for layer in problem.layers}
        values = np.zeros((len(positions), len(sigmas), 2))
        row = {p: i for i, p in enumerate(positions)}
        for s, sigma in enumerate(sigmas):
            for sign, scale in ((0, sigma), (1, -sigma)):
                # Once for all samples: of a large network the noisy weights take about as long as a pass.
                moved = {name: problem.params[name].add(u, alpha=scale) for name, u in noise.items()}
                for run in problem.batches(positions):
                    batch = problem.batch(run)
                    with torch.no_grad():
                        outputs = problem.forward({**problem.params, **moved}, batch.inputs)
                        losses = problem.loss.per_sample(outputs, batch.targets)
                    values[[row[p] for p in run], s, sign] = losses.double().cpu().numpy() - self._losses[run]
        return values


class NoisePerSample:
    """Noise of its own for every sample and draw, in activation space.

    It is used as :class:`NoisePerBlock` is; a stratum is one sample.
    """

    most_draws = 2**14
    summary = "per sample"

    def __init__(self, problem: Problem, context: Context, losses: np.ndarray):
        self._problem, self._seed, self._losses = problem, context.seed, losses
        self.strata = [[p] for p in range(problem.num_samples)]
        self._rows = most_held(problem, problem.budgets, row_bytes_on(problem))
        self._can_sweep = can_sweep(problem)
        self._sweep: Sweep | None = None

    def draws(self, stratum: int, num: int, kind: str) -> list[Draw]:
        """As of :class:`NoisePerBlock`."""
        return [([stratum], row_of(kind, stratum, draw, num)) for draw in range(num)]

    def rises(self, draws: Sequence[Draw], sigmas: Sequence[float], controlled: bool) -> tuple[np.ndarray, np.ndarray]:
        """As of :class:`NoisePerBlock`."""
        problem, shares, done = self._problem, self._problem.shares, 0
        values, control = np.zeros((len(draws), len(sigmas))), np.zeros(len(draws))
        for run in problem.batches([positions[0] for positions, _ in draws], self._rows):
            rows = [(p, (NAME, *key), member) for p, (_, (key, member)) in zip(run, draws[done:], strict=False)]
            normals = Normals(rows, self._seed, problem.params)
            now = slice(done, done + len(run))
            if self._sweep is not None and self._sweep.positions != run:
                self._sweep = None  # before the next passes take memory
            # Read back together: an accelerator is waited for once a batch.
            losses = torch.stack([noisy_losses(problem, rows, normals, (sigma, -sigma)).mean(0) for sigma in sigmas], 1)
            values[now] = (losses.double().cpu().numpy() - self._losses[run][:, None]) * shares[run][:, None]
            if controlled and self._can_sweep:
                if self._sweep is None:
                    self._sweep = Sweep(problem, run)
                second = self._sweep.hessian(*noise_directions(self._sweep, normals)).cpu().numpy()
                control[now] = 0.5 * second * shares[run]
            done += len(run)
        return values, control


def losses_without(problem: Problem, shard: range) -> Part:
    """Loss of every sample of a shard without noise, and the norm of its gradient in the output, ``[N]`` each."""
    losses, sizes, row = np.zeros(len(shard)), np.zeros(len(shard)), {p: i for i, p in enumerate(shard)}
    for run in problem.batches(shard):
        batch = problem.batch(run)
        with torch.no_grad():
            outputs = problem.forward(problem.params, batch.inputs)
            found = problem.loss.per_sample(outputs, batch.targets)
        rows = [row[p] for p in run]
        losses[rows] = found.double().cpu().numpy()
        gradient = problem.loss.output_gradient(outputs, batch.targets)
        sizes[rows] = gradient.flatten(1).norm(dim=1).double().cpu().numpy()
    return {"loss": losses, "size": sizes}


def are_rounded(problem: Problem, losses: np.ndarray, rise: float) -> bool:
    """Whether what the losses without noise ``[N]`` are rounded by may be seen in a rise of this size."""
    coarse = 10 * torch.finfo(problem.dtype).eps * np.abs(losses).mean() / np.sqrt(len(losses))
    small = sum(p.numel() * p.element_size() for p in problem.params.values()) <= NEAR_BYTES
    return small and bool(coarse > 0.01 * abs(rise))


def losses_near(problem: Problem, context: Context, shard: range) -> Part:
    """As :func:`losses_without`, averaged over weights that differ by some roundings, up and down alike.

    All draws of a sample have the loss without noise taken off, and so what that is rounded by, which no number of
    draws makes smaller. ``rounding`` is the variance of the mean ``[N]``.
    """
    found, step = [], NEAR * torch.finfo(problem.dtype).eps
    for draw in range(NEAR_DRAWS):
        source = stream(context, NAME, "near", draw)
        real = {name: p for name, p in problem.params.items() if p.is_floating_point()}
        moves = {name: p * normal(tuple(p.shape), source, p) for name, p in real.items()}
        up, down = (_losses_at(problem, shard, moves, scale) for scale in (step, -step))
        found.append((up + down) / 2)
    return {"loss": np.mean(found, 0), "rounding": np.var(found, 0, ddof=1) / len(found)}


def _losses_at(problem: Problem, shard: range, moves: Mapping[str, Tensor], scale: float) -> np.ndarray:
    """Loss of every sample of a shard at moved weights ``[N]``."""
    moved = {name: problem.params[name].add(move, alpha=scale) for name, move in moves.items()}
    found, row = np.zeros(len(shard)), {p: i for i, p in enumerate(shard)}
    for run in problem.batches(shard):
        batch = problem.batch(run)
        with torch.no_grad():
            outputs = problem.forward({**problem.params, **moved}, batch.inputs)
            found[[row[p] for p in run]] = problem.loss.per_sample(outputs, batch.targets).double().cpu().numpy()
    return found


def rounding_of(problem: Problem, parts: Sequence[Part]) -> float:
    """Standard error that the losses without noise leave in every rise, in the loss's unit."""
    return float(np.sqrt((problem.shares**2 * stack(parts, "rounding")).sum()) / problem.num_samples)


Noise = NoisePerSample | NoisePerBlock


def find_noise(problem: Problem, context: Context, losses: np.ndarray) -> Noise:
    """Noise of every sample's own if each layer can be moved row by row, else of each block.

    ``losses [N]`` are those without noise.
    """
    kind = NoisePerSample if can_move_rows(problem) else NoisePerBlock
    return kind(problem, context, losses)


def ordered_draws(noise: Noise, counts: Sequence[int], kind: str) -> list[tuple[int, Draw]]:
    """``counts[s]`` draws of every stratum s, each with its stratum, in an order in which they are quickly measured.

    Strata with equal counts stand side by side, so that batches are full and their normals come from the same
    streams. The draws of a batch follow one another, so that what is recorded of it serves them all.
    """
    order = [s for s in sorted(range(len(counts)), key=lambda s: (counts[s], s)) if counts[s]]
    few = [[(s, draw) for draw in noise.draws(s, counts[s], kind)] for s in order if counts[s] < BLOCK]
    ordered = []
    for start in range(0, len(few), BLOCK):
        group = few[start : start + BLOCK]
        ordered += [own[d] for d in range(max(map(len, group))) for own in group if d < len(own)]
    return ordered + [(s, draw) for s in order if counts[s] >= BLOCK for draw in noise.draws(s, counts[s], kind)]
