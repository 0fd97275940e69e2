"""The worst perturbations that ascent finds in boxes around the weights: what ``sharpness`` searches with.

A perturbation is kept as moves between -1 and 1, in units of the box, so that it can be shrunk with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from genbound.estimators.random import normal
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Part, stream
from genbound.quantities.perturbed_error import error_up_to, mean_error, mean_error_and_gradient

NAME = "sharpness"
STEP = 4.0  # between the first two sizes of the first corner, squared for each further one
SMALLEST, LARGEST = 2.0**-40, 2.0**20
ROUNDING = 1e-9  # a rise of just the displacement is none too many

Moves = Mapping[str, Tensor]  # parameter -> moves between -1 and 1, of its shape


def box(weight: Tensor, kind: str, alpha: float, epsilon: float) -> Tensor:
    """Largest size of each entry's perturbation, in the unit of the weights.

    Args:
        weight: any shape.
        kind: ``alpha`` or ``magnitude_alpha``.
        alpha: in the unit of the weights, or relative to them.
        epsilon: size where a weight is zero, if they are relative.

    Returns:
        The weight's shape, or one number ``[]`` for all entries.
    """
    return weight.new_tensor(alpha) if kind == "alpha" else alpha * weight.abs() + epsilon


class Asked(NamedTuple):
    """A size of the box: to look for the worst perturbation in it, or to begin there with the first corner."""

    size: float
    ascend: bool


class Trial(NamedTuple):
    """A size of the box, and the largest rise of the error found in it; not ``whole`` is what it is at least."""

    size: float
    rise: float
    whole: bool = True


class Ends(NamedTuple):
    """The largest size found at which the rise is not too much, and the next one at which it is; ``None`` for none."""

    low: Trial | None
    high: Trial | None


class Ascent:
    """Looks for the worst perturbations in boxes around the weights.

    Args:
        problem: what is measured.
        context: of the measurement of ``sharpness``.
        positions: the samples whose error counts.

    Attributes:
        base: their error without a perturbation.
    """

    def __init__(self, problem: Problem, context: Context, positions: Sequence[int]):
        self.positions = positions
        self._problem, self._context, self._options = problem, context, context.options
        (part,) = context.map(
            "base", [positions], lambda p: {"error": np.array([mean_error(problem, problem.params, p)])}
        )
        self.base = float(part["error"][0])
        self._most = self.base + self._options.displacement + ROUNDING

    def ends(self, number: int, asked: Mapping[str, Asked]) -> dict[str, Ends]:
        """Kind -> where the rise of what was found passes the displacement. Every call is a stored stage."""
        parts = self._context.map(f"boxes {number}", list(asked.items()), lambda item: self._part(*item))
        return {
            kind: Ends(*(None if np.isnan(part[end]).any() else Trial(*part[end].tolist()) for end in Ends._fields))
            for kind, part in zip(asked, parts, strict=True)
        }

    def _part(self, kind: str, asked: Asked) -> Part:
        found = self._worst(kind, asked.size) if asked.ascend else self._first(kind, asked.size)
        return {
            end: np.array((np.nan, np.nan) if trial is None else trial[:2]) for end, trial in found._asdict().items()
        }

    def _first(self, kind: str, size: float) -> Ends:
        """Of the first corner, from a size on; at size 0 a box may be too large already."""
        if kind != "alpha":
            floor = self._at(kind, 0.0, self._corner)
            if self._too_much(floor):
                return Ends(None, self._whole(kind, floor, self._corner))
        return self._passing(kind, self._at(kind, size, self._corner), self._corner, STEP)

    def _worst(self, kind: str, size: float) -> Ends:
        """Of the first perturbation of a size that raises the error by enough; if none does, this is a low end."""
        moves, highest = self._corner, 0.0
        for step in range(1, self._options.num_steps + 1):
            if step == self._options.num_steps:
                found, gradient = self._at(kind, size, moves), dict[str, Tensor]()
            else:
                moved = self._moved(kind, size, moves)
                error, whole, gradient = mean_error_and_gradient(self._problem, moved, self.positions, self._most)
                found = Trial(size, error - self.base, whole)
            if self._too_much(found):
                return self._passing(kind, found, moves, 1 + self._options.tolerance)
            highest = max(highest, found.rise)
            if gradient:
                ahead = self._signs(step, gradient)
                moves = {name: (move + ahead[name]).clamp(-1, 1) for name, move in moves.items()}
        return Ends(Trial(size, highest), None)

    def _passing(self, kind: str, first: Trial, moves: Moves, factor: float) -> Ends:
        """The sizes of ratio ``1 + tolerance`` between which a perturbation begins to raise the error by too much.

        Args:
            kind: of the box.
            first: what the perturbation does at the size to begin with.
            moves: the perturbation.
            factor: between the first two sizes; it is squared for each further one until both ends are there.
        """
        width, least = 1 + self._options.tolerance, SMALLEST if kind == "alpha" else 0.0
        low, high, at = None, None, first
        while True:
            low, high = (low, at) if self._too_much(at) else (at, high)
            if low is not None and high is not None:
                if high.size <= max(low.size * width, SMALLEST):
                    break
                size = math.sqrt(max(low.size, SMALLEST / width) * high.size)
            elif high is None:
                if at.size == LARGEST:
                    break
                size, factor = min(at.size * factor, LARGEST), factor**2
            else:
                if at.size == least:
                    break
                size, factor = max(at.size / factor, SMALLEST) if at.size > SMALLEST else least, factor**2
            at = self._at(kind, size, moves)
        return Ends(low, None if high is None else self._whole(kind, high, moves))

    def _too_much(self, trial: Trial) -> bool:
        return trial.rise > self._options.displacement + ROUNDING

    def _at(self, kind: str, size: float, moves: Moves) -> Trial:
        """What a perturbation does at a size."""
        error, whole = error_up_to(self._problem, self._moved(kind, size, moves), self.positions, self._most)
        return Trial(size, error - self.base, whole)

    def _whole(self, kind: str, trial: Trial, moves: Moves) -> Trial:
        """The same with the rise over all samples."""
        if trial.whole:
            return trial
        error = mean_error(self._problem, self._moved(kind, trial.size, moves), self.positions)
        return Trial(trial.size, error - self.base)

    def _moved(self, kind: str, size: float, moves: Moves) -> dict[str, Tensor]:
        """The weights, perturbed by moves in units of a box."""
        params, epsilon = self._problem.params, self._options.epsilon
        return params | {name: params[name] + box(params[name], kind, size, epsilon) * m for name, m in moves.items()}

    @cached_property  # all ascents start from it; a run that is continued may need none
    def _corner(self) -> dict[str, Tensor]:
        """Signs of the gradient at w."""
        return self._signs(0, mean_error_and_gradient(self._problem, self._problem.params, self.positions)[2])

    def _signs(self, step: int, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """Where to ascend: the gradient's signs, or where all of it is zero drawn ones, the same in every trial."""
        if any(bool(g.any()) for g in gradient.values()):
            return {name: g.sign() for name, g in gradient.items()}
        source = stream(self._context, NAME, "corner", step)
        return {name: normal(tuple(g.shape), source, g).sign() for name, g in gradient.items()}
