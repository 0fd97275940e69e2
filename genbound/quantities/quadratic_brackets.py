r"""Brackets of :math:`v^\top H^+ v` for single samples and layers: a first one of each, and narrower ones of some."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from genbound.curvature.layer_block import LayerBlock
from genbound.estimators.lanczos import LEAST, Lanczos, rounding
from genbound.network.layers import Layer
from genbound.network.loss_functions import output_form
from genbound.network.memory import vector_room
from genbound.network.problem import Problem
from genbound.network.tape import Tape
from genbound.quantities.base import Part
from genbound.quantities.catalogue.max_quadratic_form import MaxQuadraticFormOptions

# Numbers of products after which brackets are computed and samples dropped.
CHECKPOINTS = frozenset({
    2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384,
    512,
})  # fmt: skip
FIRST = 4  # samples that are refined to the end before the others
TOGETHER = 64  # samples of a layer that are refined by one process, in batches, while others refine others
HELD = 6  # vectors of each sample that one product takes: two of the recursion, and what is made of the second
RECORDING = 8  # products that recording a tape is reckoned at


def is_closed(lower: np.ndarray, upper: np.ndarray, tolerance: float) -> bool:
    """Whether the maximum over the samples of values within ``[lower, upper]`` ``[N]`` is known to the tolerance."""
    return bool(upper.max() - lower.max() <= tolerance * upper.max())


def screen(problem: Problem, positions: Sequence[int], layers: Sequence[Layer] | None = None) -> Part:
    """One bracket for every sample and layer.

    Args:
        problem: what is measured.
        positions: of n samples.
        layers: which ones, L of them; ``None`` means all.

    Returns:
        ``lower`` and ``upper`` ``[n, L]`` in the unit of the loss; ``exact [n, L]`` where they differ by rounding only.
    """
    layers = problem.layers if layers is None else layers
    lower = np.zeros((len(positions), len(layers)))
    upper, exact = np.zeros_like(lower), np.ones_like(lower, dtype=bool)
    column, place = {layer.name: i for i, layer in enumerate(layers)}, {p: i for i, p in enumerate(positions)}
    later = []  # on smaller tapes, when the large ones are gone
    for tape in problem.tapes(positions, list(column)):
        rows = [place[p] for p in tape.positions]
        moved = [n for n in tape.layers if tape.uses[n] and n in problem.displacement.moved]
        certain = [n for n in moved if n in tape.positive_semidefinite]
        for name, low, high in _output_forms(problem, tape, certain):
            lower[rows, column[name]], upper[rows, column[name]] = low, high
        for name in moved:
            if name not in certain:
                block = LayerBlock(tape, name)
                size = max(1, vector_room(problem.memory_budget) // max(1, 8 * HELD * block.dimension))
                if len(rows) > size:
                    later += [(name, run) for run in problem.batches(tape.positions, size)]
                else:
                    lower[rows, column[name]], upper[rows, column[name]] = _first_brackets(problem, block)
                exact[rows, column[name]] = False
        del tape
    for name, run in later:
        rows = [place[p] for p in run]
        found = _first_brackets(problem, LayerBlock(problem.tape(run, [name]), name))
        lower[rows, column[name]], upper[rows, column[name]] = found
    return {"lower": lower, "upper": upper, "exact": exact}


def _output_forms(problem: Problem, tape: Tape, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """``(name, lower [n], upper [n])`` of positive semidefinite layers, from what they do to the output."""
    allowance = rounding(problem.dtype)
    for name, u in tape.output_derivatives(problem.displacement.of(names)).items():
        value = output_form(problem.loss, tape.outputs, tape.targets, u).cpu().numpy()
        yield name, value * (1 - allowance), value * (1 + allowance)


def _first_brackets(problem: Problem, block: LayerBlock) -> tuple[list[float], list[float]]:
    """The lower and the upper sides for the samples of a tape, after one product from the layer's displacement."""
    run = Lanczos(block.product, block.start(problem.displacement[block.name]), keep=1)
    run.step(block.precision)
    lower, upper = zip(*(run.certified(i, problem.dtype) for i in range(len(block.tape))), strict=True)
    return list(lower), list(upper)


def next_round(
    number: int, lower: np.ndarray, upper: np.ndarray, visited: set[int], tolerance: float
) -> list[list[int]]:
    """What is refined side by side, nobody knowing of the others: runs of samples, the most promising first.

    Every round begins with the best lower side of all rounds before it. The first is a few samples, which make that
    side a good one; later ones take twice as many runs each time, as the side changes less and less.

    Args:
        number: of the round, from 0.
        lower: one side of every sample's bracket ``[N]``.
        upper: the other.
        visited: samples of earlier rounds, to which those of this one are added.
        tolerance: to which the maximum is to be known.
    """
    least = lower.max() / (1 - tolerance)
    open_ones = [int(p) for p in np.argsort(-upper, kind="stable") if upper[p] > least and p not in visited]
    size, num = (FIRST, 1) if number == 0 else (TOGETHER, 2 ** (number - 1))
    chosen = open_ones[: size * num]
    visited |= set(chosen)
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


class Refinement:
    """Refines the samples that may attain one layer's maximum, until it is known to the tolerance.

    The most promising samples go first, a few of them to the end: then the best lower side is a good one when the
    others are looked at, a batch at a time. A sample is *open* while its upper side is above the best lower side by
    more than the tolerance. It leaves as soon as it is not.

    Args:
        problem: what is measured.
        options: of ``max_quadratic_form``.
        layer: whose maximum.
        lower: one side of every sample's bracket ``[N]``.
        upper: the other.
        most: products after which no further sample is begun and no further product taken.
    """

    def __init__(
        self,
        problem: Problem,
        options: MaxQuadraticFormOptions,
        layer: Layer,
        lower: np.ndarray,
        upper: np.ndarray,
        most: float = math.inf,
    ):
        self._problem, self._options, self._layer, self._most = problem, options, layer, most
        self._lower, self._upper, self._products = lower.copy(), upper.copy(), 0

    def among(self, positions: Sequence[int]) -> Part:
        """Narrower brackets of these n samples (``lower`` and ``upper`` ``[n]``), and the products that they took."""
        self._visit(set(range(len(self._upper))) - set(positions))
        chosen = list(positions)
        return {
            "lower": self._lower[chosen], "upper": self._upper[chosen], "products": np.array(self._products),
        }  # fmt: skip

    def run(self) -> Part:
        """Narrower brackets of every sample, and the products that they took."""
        self._visit(set())
        return {"lower": self._lower, "upper": self._upper, "products": np.array(self._products)}

    def _visit(self, visited: set[int]) -> None:
        """Refine those that were not visited."""
        size = self._batch_size()
        while self._products < self._most and (
            pending := self._most_promising(visited)[: size if visited else min(size, FIRST)]
        ):
            visited |= set(pending)
            for members in self._problem.even_batches(pending, size):
                self._refine(members)

    def _is_open(self, position: int) -> bool:
        return self._upper[position] > self._lower.max() / (1 - self._options.tolerance)

    def _most_promising(self, visited: set[int]) -> list[int]:
        """The open samples that were not visited; none is left if the rest have all spent their products."""
        order = np.argsort(-self._upper, kind="stable")
        return [int(p) for p in order if self._is_open(p) and p not in visited]

    def _batch_size(self) -> int:
        """Samples refined side by side: as many as have room for all vectors of their recursions, or one."""
        if not self._layer.by_batch:
            return 1
        dimension = self._block([int(np.argmax(self._upper))]).dimension
        return max(1, min(self._problem.batch_size, self._room(dimension) // self._options.max_products))

    def _room(self, dimension: int) -> int:
        """Vectors of this length in float64 that are kept at a time; one or two more than the least do not help."""
        found = vector_room(self._problem.memory_budget) // (8 * dimension)
        return found if found >= 2 * LEAST else LEAST

    def _block(self, positions: list[int]) -> LayerBlock:
        return LayerBlock(self._problem.tape(positions, [self._layer.name]), self._layer.name)

    def _refine(self, members: list[int]) -> None:
        """Samples side by side, until none is open or the products are spent."""
        block = self._block(members)
        start, room = block.start(self._problem.displacement[self._layer.name]), self._room(block.dimension)
        run = Lanczos(block.product, start, keep=room // len(members))
        while members and run.num_products < self._options.max_products and self._products < self._most:
            run.step(block.precision)
            self._products += len(members)
            last = run.num_products == self._options.max_products or self._products >= self._most
            if run.num_products not in CHECKPOINTS and not last:
                continue
            self._narrow(run, members)
            rows = [i for i, p in enumerate(members) if self._is_open(p) and not run.ended(i)]
            # A smaller tape costs a few products; what is left takes perhaps as many as were needed so far.
            if (len(members) - len(rows)) * run.num_products >= RECORDING * len(rows):
                members = [members[i] for i in rows]
                if members:
                    block = block.narrowed(self._problem.tape(members, [self._layer.name]), rows)
                    run = run.select(rows, block.product)

    def _narrow(self, run: Lanczos, members: list[int]) -> None:
        """The brackets after the products so far; a side never moves back."""
        for i, p in enumerate(members):
            if self._is_open(p):
                low, high = run.certified(i, self._problem.dtype)
                self._upper[p] = min(self._upper[p], high)
                self._lower[p] = min(max(self._lower[p], low), self._upper[p])
