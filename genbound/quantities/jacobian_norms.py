r"""Norms of the Jacobians between the layers of a network, sample by sample: what ``compression`` is mostly made of.

The squared norm of :math:`J_{ij}` is the sum of :math:`\|J_{ij}^\top w\|^2` over the unit vectors w at the later
layer's output. Where that has many coordinates, the mean over random signs w stands for it. Seen at one position of
the earlier layer's output, the same sum is the squared norm of the columns that belong to that position, its *mass*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genbound.estimators.random import BLOCK, rademacher
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Part, stream
from genbound.structure.site_jacobians import SitePass

NAME = "compression"
FIRST = 16  # random signs of the first round: fewer tell little of their own error
CERTAIN = 4.0  # standard errors beyond which an order is certain; they are estimated from few signs


def ratio(a: np.ndarray, b: np.ndarray, otherwise: float) -> np.ndarray:
    """``a / b``, and a number where b is not positive; of the shape that both broadcast to."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, otherwise), where=b > 0)


class ChosenSamples:
    """The samples that are looked at, evenly spaced among the measured ones. They are called by their numbers.

    Args:
        problem: what is measured.
        context: of the measurement.

    Attributes:
        num: how many there are.
        options: of ``compression``.
    """

    def __init__(self, problem: Problem, context: Context):
        self.options, self._problem, self._context = context.options, problem, context
        self.num = min(context.options.num_samples, problem.num_samples)
        self._positions = [i * problem.num_samples // self.num for i in range(self.num)]
        self._names = used_layers(problem)

    def runs(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers in runs that share a forward pass."""
        number = {self._positions[n]: n for n in numbers}
        return [[number[p] for p in run] for run in self._problem.batches(list(number))]

    def site_pass(self, numbers: Sequence[int]) -> SitePass:
        """A forward pass of these samples."""
        return SitePass(self._problem, self._names, [self._positions[n] for n in numbers])

    def draw(self, kind: Callable, key: tuple, numbers: Sequence[int], like: Tensor) -> Tensor:
        """Random numbers for these samples, in the shape of ``like [n, ...]``.

        There is a stream for each block of samples, so that batching changes nothing.
        """
        blocks: dict[int, Tensor] = {}
        for block in (n // BLOCK for n in numbers):
            if block not in blocks:
                source = stream(self._context, NAME, *key, block)
                blocks[block] = kind((BLOCK, like.numel() // len(numbers)), source, like)
        return torch.stack([blocks[n // BLOCK][n % BLOCK] for n in numbers]).view_as(like)


def used_layers(problem: Problem) -> list[str]:
    """Names of the layers that the network uses."""
    return [layer.name for layer in problem.layers if layer.kind != "unused"]


class _Directions:
    """Directions w at a site's output: all unit vectors if these are few, else random signs.

    Args:
        samples: among which those of the pass are.
        run: the pass.
        numbers: of its samples.
        site: number of the site.
        stage: names the random signs.
        signs: which of the random signs.

    Attributes:
        exact: they are all unit vectors.
        weight: of each in what a sum over the unit vectors is.
    """

    def __init__(
        self, samples: ChosenSamples, run: SitePass, numbers: Sequence[int], site: int, stage: str, signs: range
    ):
        self._samples, self._numbers, self._like = samples, numbers, run.outputs[site]
        self._key, self._signs = (stage, run.sites[site].name), signs
        self._dimension = self._like.numel() // len(numbers)
        self.exact = self._dimension <= samples.options.exact
        self.weight = 1.0 if self.exact else 1.0 / len(signs)

    def __iter__(self) -> Iterator[Tensor]:
        like = self._like
        for index in range(self._dimension) if self.exact else self._signs:
            if self.exact:
                unit = torch.zeros(len(self._numbers), self._dimension, dtype=like.dtype, device=like.device)
                unit[:, index] = 1
                yield unit.view_as(like)
            else:
                yield self._samples.draw(rademacher, (*self._key, index), self._numbers, like)


def column_masses(
    samples: ChosenSamples, run: SitePass, numbers: Sequence[int], target: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The masses of the Jacobians into a site, by the few directions of the pilot.

    Args:
        samples: among which those of the pass are.
        run: the pass.
        numbers: of its n samples.
        target: number of the site.

    Yields:
        ``(earlier site that it depends on, squared norms of the columns at each position [n, positions])``.
    """
    earlier = run.upstream(target)
    if not earlier:
        return
    directions = _Directions(samples, run, numbers, target, "pilot", range(samples.options.num_probes))
    masses: dict[int, Tensor] = {}
    for w in directions:
        for i, pulled in zip(earlier, run.pull(target, w, earlier), strict=True):
            mass = directions.weight * run.sites[i].pixels(pulled).double()
            masses[i] = masses[i] + mass if i in masses else mass
    for i in earlier:
        yield i, masses[i].cpu().numpy()


class Norm(NamedTuple):
    """What is known of a Jacobian: its squared norm, the part of it at a position, and the variances of their noise."""

    square: float
    square_var: float
    share: float
    share_var: float


class Candidate(NamedTuple):
    """A Jacobian of one sample whose norm may be extreme.

    Attributes:
        number: what it may be extreme for, ``cushion`` or ``beta``.
        layer: the site that it is from.
        target: the site that it is into.
        sample: whose.
        position: of the columns that count for ``beta``.
        factor: of the ratio: a cushion over the inverse norm, the number of positions for ``beta``.
    """

    number: str
    layer: int
    target: int
    sample: int
    position: int
    factor: float

    def estimate(self, norm: Norm) -> tuple[float, float]:
        """The ratio, and its standard error; not a number where the Jacobian vanishes."""
        if self.number == "beta":
            value = math.sqrt(self.factor * norm.share)
            return value, 0.5 * math.sqrt(self.factor * norm.share_var / norm.share) if norm.share > 0 else 0.0
        if not norm.square > 0:
            return math.nan, math.nan
        value = self.factor / math.sqrt(norm.square)
        return value, 0.5 * value * math.sqrt(norm.square_var) / norm.square

    @property
    def key(self) -> tuple[str, int]:
        """What it competes for: one number of one layer."""
        return self.number, self.layer


def refined_norms(
    context: Context, samples: ChosenSamples, candidates: Sequence[Candidate], limits: Mapping[tuple[str, int], float]
) -> dict[Candidate, Norm]:
    """Norms of the candidates by directions that the pilot did not have, as far as each must be known.

    Random signs come in rounds of twice as many each. Out of them are candidates that are worse than the best one for
    their number and layer, or than what the number is anyway, by ``CERTAIN`` standard errors of the difference; those
    that are known to a relative standard error of ``options.error``; and all after ``options.num_refined`` signs.

    Args:
        context: of the measurement. Every round is a stored stage.
        samples: among which the candidates' are.
        candidates: those to measure.
        limits: number and layer -> what a candidate must be beyond to count.
    """
    drawn: dict[Candidate, _Drawn] = {candidate: _Drawn() for candidate in candidates}
    left, begin, end = list(candidates), 0, min(FIRST, samples.options.num_refined)
    while left:
        targets = sorted({candidate.target for candidate in left})
        own = {j: [candidate for candidate in left if candidate.target == j] for j in targets}
        measure = partial(_drawn_masses, samples, own, range(begin, end))
        parts = context.map(f"refine from {begin}", targets, measure)
        for j, part in zip(targets, parts, strict=True):
            for row, candidate in enumerate(own[j]):
                drawn[candidate].add(part["square"][:, row], part["piece"][:, row], bool(part["exact"].all()))
        left = [] if end == samples.options.num_refined else _undecided(drawn, limits, samples.options.error)
        begin, end = end, min(2 * end, samples.options.num_refined)
    return {candidate: found.norm for candidate, found in drawn.items()}


class _Drawn:
    """What the directions give for one candidate."""

    def __init__(self) -> None:
        self._square, self._piece, self._exact = np.zeros(0), np.zeros(0), False

    def add(self, square: np.ndarray, piece: np.ndarray, exact: bool) -> None:
        """The squared norms and masses of more directions ``[draws]``; exact ones are all unit vectors."""
        self._square, self._piece = np.append(self._square, square), np.append(self._piece, piece)
        self._exact = exact

    @property
    def norm(self) -> Norm:
        if self._exact:
            total = self._square.sum()
            return Norm(float(total), 0.0, float(ratio(self._piece.sum(), total, 0.0)), 0.0)
        num, total = len(self._square), self._square.mean()
        share = ratio(self._piece.mean(), total, 0.0)
        spread = (self._piece - share * self._square).var(ddof=1) / num  # of a ratio of means, to first order
        variance = self._square.var(ddof=1) / num
        return Norm(float(total), float(variance), float(share), float(ratio(spread, total**2, 0.0)))


def _undecided(
    drawn: Mapping[Candidate, _Drawn], limits: Mapping[tuple[str, int], float], error: float
) -> list[Candidate]:
    """Those that may be the extreme one and are not known well enough."""
    found = {candidate: candidate.estimate(known.norm) for candidate, known in drawn.items()}
    found = {candidate: estimate for candidate, estimate in found.items() if not math.isnan(estimate[0])}
    left = []
    for candidate, (value, sem) in found.items():
        sign = -1 if candidate.number == "beta" else 1  # the largest is sought, or the least
        rivals = [estimate for other, estimate in found.items() if other.key == candidate.key]
        best, best_sem = min([*rivals, (limits[candidate.key], 0.0)], key=lambda estimate: sign * estimate[0])
        beaten = sign * (value - best) > CERTAIN * math.hypot(sem, best_sem)
        if sem > error * value and not beaten:
            left.append(candidate)
    return left


def _drawn_masses(samples: ChosenSamples, own: Mapping[int, Sequence[Candidate]], signs: range, target: int) -> Part:
    """Squared norms of the candidates into one site along some directions.

    Returns:
        ``square``, and ``piece``, the mass at the candidate's position, ``[draws, candidates]`` each;
        ``exact``, whether the directions are all unit vectors, ``[1]``.
    """
    wanted, rows = own[target], dict[int, list[int]]()
    for row, candidate in enumerate(wanted):
        rows.setdefault(candidate.sample, []).append(row)
    squares: dict[int, list[float]] = {}
    pieces: dict[int, list[float]] = {}
    exact = False
    for numbers in samples.runs(sorted(rows)):
        run, place = samples.site_pass(numbers), {n: i for i, n in enumerate(numbers)}
        earlier = sorted({wanted[row].layer for n in numbers for row in rows[n]})
        directions = _Directions(samples, run, numbers, target, "refine", signs)
        exact = directions.exact
        for w in directions:
            pulled = zip(earlier, run.pull(target, w, earlier), strict=True)
            masses = {i: run.sites[i].pixels(g).double().cpu().numpy() for i, g in pulled}
            for n in numbers:
                for row in rows[n]:
                    mass = masses[wanted[row].layer][place[n]]
                    squares.setdefault(row, []).append(mass.sum())
                    pieces.setdefault(row, []).append(mass[wanted[row].position])
    order = range(len(wanted))
    return {
        "square": np.array([squares[row] for row in order]).T,
        "piece": np.array([pieces[row] for row in order]).T,
        "exact": np.array([exact]),
    }
