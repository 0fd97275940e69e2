r"""A tensor's displacement, rounded to a grid and described in one of four forms that are fixed beforehand.

==============  =====================================================================================
``zero``        it is the prior's centre
``grid``        :math:`\Delta q`, integers q of the tensor's own shape
``opposite``    :math:`(-\tfrac12 \Delta q, \tfrac12 \Delta q)` for a first axis of two: of two class
                scores only the difference matters
``pieces``      :math:`\sum_{k \le r} \Delta_k^2\, a_k b_k^\top` for a matrix, integers :math:`a_k, b_k`
==============  =====================================================================================

Which form, each step from the grid :data:`STEPS`, the rank, and the integers under a universal prior
(:mod:`genbound.estimators.universal_code`) are what the description is made of. Its length in nats is
minus the logarithm of a probability: over all that can be described, these add up to at most one. So whatever is chosen
after having seen the samples is paid for, and nothing else has to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from genbound.estimators.universal_code import code_nats
from genbound.posterior.curved_rounding import rounded

# Fixed: 10^-5 to 10^1 in tenths of a decade, in the weights' unit (of pieces: in the root of it).
STEPS = tuple(10.0 ** (k / 10) for k in range(-50, 11))
FORMS = ("zero", "grid", "opposite", "pieces")
EVEN = dict.fromkeys(FORMS, math.log(len(FORMS)))  # nats of a form, where all are alike
MOST_PIECES = 16  # that are looked for; the description allows any rank
NEAR = 3.0  # times the best price, up to which a description is worth better integers
LARGEST = 1000  # steps in an entry, above which a step is not tried


@dataclass(frozen=True)
class Coded:
    """One description of a displacement.

    Attributes:
        form: of :data:`FORMS`.
        nats: its length, where all forms are alike.
        error: what it leaves out, squared length in the weights' unit and in the tensor's metric.
        step: of its integers; of pieces, that of the first one.
        rank: of pieces; else 0.
        integers: where they are not the nearest ones.
    """

    form: str
    nats: float
    error: float
    step: float = 0.0
    rank: int = 0
    integers: np.ndarray | None = field(default=None, compare=False, repr=False)


class TensorCode:
    """All descriptions of one displacement that are worth a look.

    Args:
        displacement: ``[*shape]``, in the weights' unit.
        common: what all entries of the first axis have in common does not matter, as for the head of a softmax.
        most_nats: length from which on a description is useless.
        metric: ``[d, d]`` of trace d: how much an error along each direction matters; ``None``: all alike.
    """

    def __init__(
        self, displacement: Tensor, common: bool = False, most_nats: float = math.inf,
        metric: np.ndarray | None = None,
    ):  # fmt: skip
        wanted = displacement.detach().double().cpu()
        self.shape, self._common, self._most_nats = wanted.shape, common, most_nats
        self._wanted, self._metric = self._centred(wanted), metric
        self._choices = list(self._nearest())

    def best(self, weight: float, prices: Mapping[str, float] = EVEN) -> Coded:
        """The description with the least nats, prices of forms included, and ``weight`` times what it leaves out."""

        def price(coded: Coded) -> float:
            return coded.nats - EVEN[coded.form] + prices[coded.form] + weight * coded.error

        found = min(self._choices, key=price)
        if self._metric is None:
            return found
        near = (c for c in self._choices if c.form in ("grid", "opposite") and price(c) < NEAR * price(found))
        return min((found, *(self._bent(coded, weight) for coded in near)), key=price)

    def gridded(self, step: float) -> Coded:
        """By the nearest integers at the step of the grid that is nearest to this one, in the shorter form."""
        own = _nearest_step(step)
        on_grid = [coded for coded in self._choices if coded.form in ("grid", "opposite")]
        if not on_grid or own > max(coded.step for coded in on_grid):
            return self._choices[0]  # all integers would be 0
        own = max(own, min(coded.step for coded in on_grid))
        return min((coded for coded in on_grid if coded.step == own), key=lambda coded: coded.nats)

    def tensor(self, coded: Coded) -> Tensor:
        """The displacement that a description stands for, ``[*shape]`` in float64."""
        if coded.form == "zero":
            return torch.zeros(self.shape, dtype=torch.float64)
        if coded.form == "pieces":
            return _together(self._rounded(coded.step, coded.rank)).view(self.shape)
        integers = self._integers(coded.form, coded.step) if coded.integers is None else coded.integers
        return self._placed(coded.form, coded.step, integers)

    def _nearest(self) -> Iterator[Coded]:
        """Descriptions by the nearest integers, for every step."""
        yield Coded("zero", math.log(len(FORMS)), self._missed(torch.zeros(self.shape, dtype=torch.float64)))
        largest = float(self._wanted.abs().max())
        for step in (step for step in STEPS if largest / LARGEST <= step <= 2 * largest):
            for form in ("grid", "opposite") if self._is_pair else ("grid",):
                yield self._of(form, step, self._integers(form, step))
        if self._is_matrix:
            for step in STEPS:
                yield from self._pieces(step)

    # -- integers of the tensor's shape -----------------------------------------------------------------------------

    @property
    def _is_pair(self) -> bool:
        return len(self.shape) > 0 and self.shape[0] == 2

    def _integers(self, form: str, step: float) -> np.ndarray:
        wanted = self._wanted if form == "grid" else self._wanted[1] - self._wanted[0]
        return np.rint(wanted.numpy() / step).astype(np.int64)

    def _placed(self, form: str, step: float, integers: np.ndarray) -> Tensor:
        moved = torch.as_tensor(integers * step, dtype=torch.float64)
        return moved if form == "grid" else torch.stack([-moved / 2, moved / 2])

    def _of(self, form: str, step: float, integers: np.ndarray, keep: bool = False) -> Coded:
        nats = math.log(len(FORMS)) + math.log(len(STEPS)) + code_nats(integers)
        error = self._missed(self._placed(form, step, integers))
        return Coded(form, nats, error, step, integers=integers if keep else None)

    def _bent(self, coded: Coded, weight: float) -> Coded:
        """The same form and step, with the integers that the metric likes best."""
        metric, wanted = 2 * weight * self._metric, self._wanted
        if coded.form == "opposite":
            half = metric.shape[0] // 2
            a, b, c = metric[:half, :half], metric[:half, half:], metric[half:, half:]
            metric, wanted = (a - b - b.T + c) / 4, wanted[1] - wanted[0]
        integers = rounded(wanted.flatten().numpy(), coded.step, metric).reshape(tuple(wanted.shape))
        return self._of(coded.form, coded.step, integers, keep=True)

    def _missed(self, placed: Tensor) -> float:
        rest = self._centred(self._wanted - placed)
        if self._metric is None:
            return float(rest.square().sum())
        flat = rest.flatten().numpy()
        return float(flat @ self._metric @ flat)

    def _centred(self, tensor: Tensor) -> Tensor:
        return tensor - tensor.mean(0, keepdim=True) if self._common else tensor

    # -- pieces of rank one -------------------------------------------------------------------------------------------

    @property
    def _is_matrix(self) -> bool:
        return len(self.shape) > 1 and min(self._matrix.shape) > 1

    @property
    def _matrix(self) -> Tensor:
        return self._wanted.flatten(1)

    def _pieces(self, step: float) -> Iterator[Coded]:
        """Of every rank up to the one whose next piece rounds to nothing."""
        nats, before = math.log(len(FORMS)) + math.log(min(self._matrix.shape)), []
        error = float(self._wanted.square().sum())
        for piece in self._rounded(step, MOST_PIECES):
            nats += math.log(len(STEPS)) + code_nats(piece.left) + code_nats(piece.right)
            if nats > self._most_nats:
                return
            error += self._change(piece, before)
            before.append(piece)
            if self._metric is not None:
                error = self._missed(_together(before).view(self.shape))
            yield Coded("pieces", nats, max(0.0, error), step, len(before))

    def _change(self, piece: _Piece, before: Sequence[_Piece]) -> float:
        """By how much a piece changes the square of what is left, without multiplying it out."""
        left = piece.left - piece.left.mean() if self._common else piece.left
        along = left @ self._matrix.numpy() @ piece.right
        along -= sum(old.step**2 * (left @ old.left) * (piece.right @ old.right) for old in before)
        scale = piece.step**2
        return float(scale**2 * (left @ left) * (piece.right @ piece.right) - 2 * scale * along)

    def _rounded(self, step: float, rank: int) -> Iterator[_Piece]:
        """The leading pieces, as they are rounded where the first one has this step.

        A piece of singular value s has factors of length root s. An error in one of them is multiplied by the length
        of the other: so that every entry errs alike, the step falls with the root of s.
        """
        first = None
        for left, value, right in self._leading():
            if first is None:
                first = value
            if rank == 0 or value <= 0:
                return
            own = _nearest_step(step * math.sqrt(first / value))
            root = math.sqrt(value)
            piece = _Piece(own, np.round(left * root / own), np.round(right * root / own))
            if max(np.abs(piece.left).max(), np.abs(piece.right).max()) > LARGEST or not piece.left.any():
                return
            if not piece.right.any():
                return
            yield piece
            rank -= 1

    def _leading(self) -> list[tuple[np.ndarray, float, np.ndarray]]:
        """``(left, singular value, right)`` of the largest singular values."""
        if not hasattr(self, "_svd"):
            left, values, right = torch.linalg.svd(self._matrix, full_matrices=False)
            self._svd = [
                (left[:, k].numpy(), float(values[k]), right[k].numpy()) for k in range(min(MOST_PIECES, len(values)))
            ]
        return self._svd


@dataclass(frozen=True)
class _Piece:
    """``step^2 left right^T`` with integers ``left [out]``, ``right [in]``."""

    step: float
    left: np.ndarray
    right: np.ndarray

    def outer(self) -> Tensor:
        return torch.from_numpy(self.step**2 * np.outer(self.left, self.right))


def _nearest_step(wanted: float) -> float:
    return min(STEPS, key=lambda step: abs(math.log(step / wanted)))


def _together(pieces: Iterable[_Piece]) -> Tensor:
    return torch.stack([piece.outer() for piece in pieces]).sum(0)
