r"""Norms of the Jacobians between the layers of a network, sample by sample: what ``compression`` is mostly made of.

The squared norm of :math:`J_{ij}` is the sum of :math:`\|J_{ij}^\top w\|^2` over the unit vectors w at the later
layer's output. Where that has many coordinates, the mean over random signs w stands for it. Seen at one position of
the earlier layer's output, the same sum is the squared norm of the columns that belong to that position, its *mass*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genbound.estimators.random import BLOCK, rademacher
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Part, stream
from genbound.structure.site_jacobians import SitePass

NAME = "compression"


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
        num: how many of them.

    Attributes:
        exact: they are all unit vectors.
        weight: of each in what a sum over the unit vectors is.
    """

    def __init__(self, samples: ChosenSamples, run: SitePass, numbers: Sequence[int], site: int, stage: str, num: int):
        self._samples, self._numbers, self._like = samples, numbers, run.outputs[site]
        self._key, self._num = (stage, run.sites[site].name), num
        self._dimension = self._like.numel() // len(numbers)
        self.exact = self._dimension <= samples.options.exact
        self.weight = 1.0 if self.exact else 1.0 / num

    def __iter__(self) -> Iterator[Tensor]:
        like = self._like
        for index in range(self._dimension if self.exact else self._num):
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
    directions = _Directions(samples, run, numbers, target, "pilot", samples.options.num_probes)
    masses: dict[int, Tensor] = {}
    for w in directions:
        for i, pulled in zip(earlier, run.pull(target, w, earlier), strict=True):
            mass = directions.weight * run.sites[i].pixels(pulled).double()
            masses[i] = masses[i] + mass if i in masses else mass
    for i in earlier:
        yield i, masses[i].cpu().numpy()


class Candidate(NamedTuple):
    """A Jacobian of one sample whose norm may be extreme.

    Attributes:
        number: what it may be extreme for, ``cushion`` or ``beta``.
        layer: the site that it is from.
        target: the site that it is into.
        sample: whose.
        position: of the columns that count for ``beta``.
    """

    number: str
    layer: int
    target: int
    sample: int
    position: int


def fresh_norms(samples: ChosenSamples, target: int, wanted: Sequence[Candidate]) -> Part:
    """Norms of the candidates into one site, by directions that the pilot did not have.

    Returns:
        ``square``, the squared norm, and ``share``, the mass's part of it at the candidate's position,
            ``[candidates]`` each;
        ``square_var`` and ``share_var`` are the variances of their noise.
    """
    rows: dict[int, list[int]] = {}
    for row, candidate in enumerate(wanted):
        rows.setdefault(candidate.sample, []).append(row)
    found = np.zeros((len(wanted), 4))
    for numbers in samples.runs(sorted(rows)):
        own = [row for n in numbers for row in rows[n]]
        found[own] = _measure_masses(samples, numbers, target, [wanted[row] for row in own])
    return {"square": found[:, 0], "square_var": found[:, 1], "share": found[:, 2], "share_var": found[:, 3]}


def _measure_masses(
    samples: ChosenSamples, numbers: Sequence[int], target: int, wanted: Sequence[Candidate]
) -> np.ndarray:
    """Squared norm, its variance, share and its variance of the candidates of one pass, ``[candidates, 4]``."""
    run, place = samples.site_pass(numbers), {n: i for i, n in enumerate(numbers)}
    earlier = sorted({candidate.layer for candidate in wanted})
    directions = _Directions(samples, run, numbers, target, "refine", samples.options.num_refined)
    squares, pieces = [], []
    for w in directions:
        pulled = zip(earlier, run.pull(target, w, earlier), strict=True)
        masses = {i: run.sites[i].pixels(g).double().cpu().numpy() for i, g in pulled}
        own = [masses[candidate.layer][place[candidate.sample]] for candidate in wanted]
        squares.append([mass.sum() for mass in own])
        pieces.append([mass[candidate.position] for mass, candidate in zip(own, wanted, strict=True)])
    square, piece = np.array(squares), np.array(pieces)
    if directions.exact:
        total, piece = square.sum(0), piece.sum(0)
        return np.stack([total, 0 * total, ratio(piece, total, 0.0), 0 * total], 1)
    num, total = len(square), square.mean(0)
    share = ratio(piece.mean(0), total, 0.0)
    spread = (piece - share * square).var(0, ddof=1) / num  # of a ratio of means, to first order
    return np.stack([total, square.var(0, ddof=1) / num, share, ratio(spread, total**2, 0.0)], 1)
