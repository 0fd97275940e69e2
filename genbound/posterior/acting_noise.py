r"""Gaussian noise on a large weight without drawing the weight: only what it does to one sample is drawn.

A linear map meets a sample at T positions, the rows of :math:`X`. Noise :math:`E` on its weight, with independent rows
:math:`N(0, S)`, moves the results by :math:`XE^\top`: Gaussian, independent from output to output, and with covariance
:math:`XSX^\top` between positions. The same distribution has :math:`Rg` with :math:`RR^\top = XSX^\top` and ``T x out``
standard normals g in place of ``in x out``. X are the inputs that the noise of earlier layers has already moved. A
convolution is a linear map of patches; positions of an embedding with the same number share their draw.

A root of the noise's covariance goes the same way: :math:`S = MM^\top` makes :math:`XM` of X. S has the eigenvectors
that the curvature has on the input side (:mod:`genbound.posterior.curvature`).

The root is taken in double precision, where what has to be added so that it exists is rounding. If there is none the
noise is not a number, and the sample counts as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from genbound.estimators.gram_root import checked_gram_root

# What asks a tensor for nothing but its kind.
HARMLESS = {
    torch.Tensor.dtype.__get__, torch.Tensor.device.__get__, torch.Tensor.shape.__get__, torch.Tensor.ndim.__get__,
    torch.Tensor.requires_grad.__get__, torch.Tensor.is_cuda.__get__, torch.Tensor.layout.__get__, torch.Tensor.size,
    torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point,
}  # fmt: skip
# Name -> root M of the covariance ``S = M M^T`` of a row of the noise, in the weights' unit: ``[in, in]``, or ``[in]``
# or a number where that is diagonal. Of an embedding, the deviation of every row of its weight, ``[rows]`` or a number.
Roots = Mapping[str, Tensor]


@dataclass(frozen=True)
class Action:
    """How a weight acts on one sample.

    Attributes:
        positions: T, of its inputs.
        width: numbers that it gives a position, out.
        is_table: it is an embedding, whose inputs are numbers of its rows.
    """

    positions: int
    width: int
    is_table: bool

    @property
    def size(self) -> int:
        """Standard normals that stand for noise on it."""
        return self.positions * self.width


class WeightCalls(TorchFunctionMode):
    """Watches a pass for the functions that are given one of some weights.

    Args:
        weights: name -> the very tensor that the pass is given.

    Attributes:
        calls: name -> how often it was applied in a way that noise can be added to.
        unread: names of weights that went into anything else.
        actions: name -> how it did in its last call.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self._names = {id(tensor): name for name, tensor in weights.items()}
        self.calls: dict[str, int] = dict.fromkeys(weights, 0)
        self.unread: set[str] = set()
        self.actions: dict[str, Action] = {}

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        names = self._given((*args, *kwargs.values()))
        if not names or function in HARMLESS:
            return out
        # Given as the input, it meets another weight: what noise on it does goes by that one.
        applied = len(names) == 1 and len(args) > 1 and id(args[1]) in self._names
        rows = _rows(function, args, kwargs) if applied else None
        if rows is None:
            self.unread.update(names)
            return out
        self.calls[names[0]] += 1
        width = out.shape[1] if function is torch.conv2d else out.shape[-1]
        self.actions[names[0]] = Action(out.numel() // width, width, function is F.embedding)
        return self.moved(names[0], function, rows, out)

    def moved(self, name: str, function: Callable, rows: Tensor, out: Tensor) -> Tensor:
        """The result of a weight's call, with what is done to it."""
        return out

    def _given(self, values: Iterable[Any]) -> list[str]:
        flat = (b for a in values for b in (a if isinstance(a, list | tuple) else (a,)))
        return [self._names[id(a)] for a in flat if id(a) in self._names]

    def check(self) -> None:
        """Refuse a pass in which a weight was not applied exactly once, as it was when that was tried."""
        wrong = sorted(self.unread | {name for name, times in self.calls.items() if times != 1})
        if wrong:
            raise RuntimeError(f"the noise was not added once for each weight: {', '.join(wrong)}")


class ActingNoise(WeightCalls):
    """Adds to the result of each weight, in one pass over one sample, the noise that it would make of its inputs.

    Args:
        weights: name -> the very tensor that the pass is given.
        normals: name -> g, ``[T, out]``.
        roots: name -> of the covariance of a row of the noise.
    """

    def __init__(self, weights: Mapping[str, Tensor], normals: Mapping[str, Tensor], roots: Roots):
        super().__init__(weights)
        self._normals, self._roots = normals, roots

    def moved(self, name: str, function: Callable, rows: Tensor, out: Tensor) -> Tensor:
        """The result with its noise."""
        root, normals = self._roots[name], self._normals[name]
        if function is F.embedding:
            deviations = root[rows, None] if root.dim() else root
            return out + (deviations.to(out) * normals[_first_equal(rows)]).view_as(out)
        rows, root = rows.double(), root.double()
        factor = checked_gram_root(rows @ root if root.dim() == 2 else rows * root)
        return out + _as(function, factor.to(out) @ normals, out)


class NudgedResults(WeightCalls):
    """Adds to the result of each weight what is given, in one pass over one sample, and keeps what it was applied to.

    Args:
        weights: name -> the very tensor that the pass is given.
        nudges: name -> what is added, ``[T, out]``.

    Attributes:
        rows: name -> what the weight was applied to, one position a row ``[T, in]``; of an embedding numbers ``[T]``.
    """

    def __init__(self, weights: Mapping[str, Tensor], nudges: Mapping[str, Tensor]):
        super().__init__(weights)
        self._nudges = nudges
        self.rows: dict[str, Tensor] = {}

    def moved(self, name: str, function: Callable, rows: Tensor, out: Tensor) -> Tensor:
        """The result with what is added."""
        self.rows[name] = rows
        return out + _as(function, self._nudges[name], out)


def _as(function: Callable, by_position: Tensor, out: Tensor) -> Tensor:
    """``[T, out]`` in the shape of a result."""
    return by_position.T.reshape(out.shape) if function is torch.conv2d else by_position.reshape(out.shape)


def _rows(function: Callable, args: Sequence, kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a weight is applied to, one position a row ``[T, in]`` (numbers ``[T]`` of an embedding).

    ``None`` where the function is not known to apply its second argument, or to do so row by row.
    """
    if function is F.linear and not kwargs.keys() - {"bias"}:
        return args[0].reshape(-1, args[0].shape[-1])
    if function is F.embedding:
        limited = kwargs.get("max_norm") is not None or len(args) > 3 and args[3] is not None
        return None if limited or len(args) < 2 else args[0].reshape(-1)
    if function is torch.conv2d and not kwargs and len(args) == 7 and not isinstance(args[4], str):
        inputs, weight, _, stride, padding, dilation, groups = args
        if groups != 1 or inputs.dim() != 4 or len(inputs) != 1:
            return None
        if math.prod(weight.shape[2:]) == 1 and not any(padding):
            return inputs[0, :, :: stride[0], :: stride[1]].flatten(1).T
        return F.unfold(inputs, weight.shape[2:], dilation, padding, stride)[0].T
    return None


def _first_equal(numbers: Tensor) -> Tensor:
    """The place of the first entry that is equal to each, ``[T]``."""
    return (numbers[:, None] == numbers[None, :]).int().argmax(1)
