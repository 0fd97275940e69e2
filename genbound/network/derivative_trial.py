"""A network at other weights than its own, and its gradients there: what derivatives are held against.

:mod:`genbound.network.derivative_checks` says what for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.data.sample_parts import map_tensors
from genbound.estimators.random import generator, normal
from genbound.network.operation import Kind
from genbound.network.operations import named, of_aten

if TYPE_CHECKING:
    from genbound.network.network import Network
    from genbound.network.weights import BaseProblem

TRIALS = 3  # directions, with smaller and smaller steps: a kink is met by one of them at most, so two must agree
# More of them, of networks in which many units stand close to their kinks at once: a channel whose weights are all
# next to nothing moves as one, and steps of 1e-8 may be the first that leave it on one side.
MORE_TRIALS = 2
LARGE = 2**25  # weights above which a network is a large one
PART = 2**18  # weights of a layer of a large network that are moved, about
ROOM = 2**31  # bytes of weights of a large network that are copied at a time


@dataclass(frozen=True)
class Precision:
    """How derivatives and differences are compared in one floating-point type.

    Attributes:
        dtype: of the passes.
        first, second: largest step relative to the weights, for first and second derivatives.
        close: allowed difference of a first derivative, relative to it.
        tolerance: allowed difference of a second derivative, likewise.
        floor: allowed difference of a second derivative, relative to the first: what rounding makes of the difference.
    """

    dtype: torch.dtype
    first: float
    second: float
    close: float
    tolerance: float
    floor: float


DOUBLE = Precision(torch.float64, 1e-6, 1e-8, 1e-4, 1e-2, 1e-3)
SINGLE = Precision(torch.float32, 1e-2, 1e-2, 0.05, 0.05, 0.05)


class Executed(TorchDispatchMode):
    """What a pass executes: whether it rounds (a straight-through estimator's does), has kinks, and in which types."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = self.kinks = False
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        row = of_aten(func)
        self.rounds |= row is named("rounding")
        self.kinks |= row.kind is Kind.PIECEWISE
        if isinstance(out, Tensor) and out.is_floating_point():
            self.types.add(out.dtype)
        return out


class Trial:
    """A network at other weights than its own: a random combination of the outputs of a few samples.

    Args:
        network: what is tried.
        names: its layers.
        precision: of the passes.

    Attributes:
        weights: layer -> the columns of its weight that are moved and differentiated, at every ``strides``-th place; of
            a network that is not large all of them.
    """

    def __init__(self, network: Network, names: Sequence[str], precision: Precision):
        self.network, self.precision = network, precision
        large = is_large(network)
        batch = network.batch(network.spread_run(2)[: 1 if large else 2])
        self.inputs = map_tensors(batch.inputs, self._cast)
        self.others = {name: self._cast(p) for name, p in network.params.items() if name not in set(names)}
        self.buffers = {name: self._cast(b) for name, b in network.buffers.items()}
        self._whole = {name: self._cast(network.params[name]).detach() for name in names}
        self.strides = {
            name: min(max(1, w.numel() // PART), w.shape[1]) if large else 1 for name, w in self._whole.items()
        }
        self.weights = {name: w[:, :: self.strides[name]] for name, w in self._whole.items()}
        self._own = dict(self.weights)
        self.executed = Executed()
        with torch.no_grad(), self.executed:
            outputs = self.outputs(self.weights)
        self.cotangent = normal(tuple(outputs.shape), generator(0, "derivative_checks"), outputs)
        self.own = outputs

    @property
    def trials(self) -> int:
        """How many directions are tried; steps of single precision cannot become smaller."""
        return TRIALS + MORE_TRIALS * (self.executed.kinks and self.precision is DOUBLE)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.precision.dtype) if tensor.is_floating_point() else tensor

    def outputs(self, weights: Mapping[str, Tensor]) -> Tensor:
        """``[N, ...]`` at these weights of the layers."""
        whole = {name: self._put_in(name, weight) for name, weight in weights.items()}
        return self.network.forward({**self.others, **whole}, self.inputs, self.buffers)

    def _put_in(self, name: str, columns: Tensor) -> Tensor:
        """The layer's whole weight with these columns."""
        if self.strides[name] == 1:
            return columns
        if columns is self._own[name]:
            return self._whole[name]
        # Its derivative in the columns is a copy: that of slice_scatter would be a view that keeps the whole gradient.
        places = torch.arange(0, self._whole[name].shape[1], self.strides[name], device=columns.device)
        return self._whole[name].index_copy(1, places, columns)

    def value(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The combination of the outputs, a scalar on the graph if the weights are."""
        return (self.outputs(weights) * self.cotangent).sum()

    def direction(self, name: str, trial: int) -> Tensor:
        """Of the whole weight's norm, so that a step is a relative one; of size 1 for a weight of zeros."""
        weight, whole = self.weights[name], self._whole[name]
        norm = float(whole.norm()) or math.sqrt(whole.numel())
        u = normal(tuple(weight.shape), generator(trial, "derivative_checks", name), weight)
        return norm / math.sqrt(weight.numel()) * u

    def moved(self, directions: Mapping[str, Tensor], step: float) -> dict[str, Tensor]:
        """The weights, those of the directions moved by ``step`` times them."""
        return self.weights | {name: self.weights[name] + step * u for name, u in directions.items()}

    def leave_kinks(self, names: Iterable[str]) -> None:
        """Go a little aside, for a network that stands on a kink exactly."""
        self.weights = self.moved({name: self.direction(name, TRIALS + MORE_TRIALS) for name in names}, 1e-3)

    def runs(self, names: Sequence[str]) -> list[list[str]]:
        """The layers in runs whose weights are copied at a time."""
        found: list[list[str]] = []
        left = 0
        for name in names:
            size = self._whole[name].numel() * self.precision.dtype.itemsize if self.strides[name] > 1 else 0
            if not found or size > left:
                found.append([])
                left = ROOM
            found[-1].append(name)
            left -= size
        return found

    def all_gradients(self, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """:meth:`gradients` at the weights, run by run."""
        known: dict[str, Tensor] = {}
        for run in self.runs(names):
            value, found = self.gradients(self.weights, run)
            known |= found
        return value, known

    def gradients(
        self, weights: Mapping[str, Tensor], names: Iterable[str], second: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The combination, and its gradients in those of these layers that autograd knows, on the graph if ``second``.

        Args:
            weights: of all layers.
            names: the layers whose gradients are wanted.
            second: whether the gradients are to be differentiated again.
        """
        with torch.enable_grad():
            leaves = {name: weights[name].detach().requires_grad_() for name in names}
            value = self.value({**weights, **leaves})
            if not value.requires_grad:
                return value, {}
            found = torch.autograd.grad(value, list(leaves.values()), create_graph=second, allow_unused=True)
        self.leaves = leaves
        return value, {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def is_large(network: Network | BaseProblem) -> bool:
    """Whether all derivatives of all weights would be much to keep."""
    return sum(p.numel() for p in network.params.values()) > LARGE
