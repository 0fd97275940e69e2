"""A forward pass recorded while it runs, below autograd: the operations whose results depend on a layer.

Layers must act once each, as a linear map or a convolution on samples that come first in every result. What
:mod:`genbound.curvature.sweep` carries tangents through is this record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genbound.curvature.rules import Unsupported
from genbound.network.operation import No
from genbound.network.operations import of_aten
from genbound.network.weight_watch import WeightWatch

if TYPE_CHECKING:
    from genbound.network.layers import Layer
    from genbound.network.problem import Problem
    from genbound.network.weight_uses import Use


def at(args: Sequence, place: tuple[int, ...]) -> Any:
    """The argument at ``(i,)``, or at ``(i, j)`` inside a list."""
    return args[place[0]] if len(place) == 1 else args[place[0]][place[1]]


@dataclass(frozen=True)
class Call:
    """An operation that depends on a layer, as it was executed.

    Attributes:
        func: the operation, with its ``args`` as they were before it ran and its ``kwargs``.
        places: which arguments depend on a layer, see :func:`at`.
        inputs: their numbers.
        result: what it returned, the part numbered ``part`` if that was a list.
        number: of the result.
        layer: whose weight it applies.
    """

    func: Any
    args: Sequence
    kwargs: Mapping[str, Any]
    places: list[tuple[int, ...]]
    inputs: tuple[int, ...]
    result: Tensor
    part: int | None
    number: int
    layer: str | None


class _Recorder:
    """Keeps the operations of a watched forward pass that depend on a layer's result."""

    def __init__(self) -> None:
        self._results: list[Tensor] = []  # kept, so that no identity is given twice
        self.numbers: dict[int, int] = {}
        self.calls: list[Call] = []
        self.uses: dict[str, Use] = {}

    def visit(self, func: Any, args: Sequence, kwargs: Mapping[str, Any], found: tuple[Layer, Use] | None) -> Any:
        """Run an operation and keep it if it depends on a layer."""
        sweep = of_aten(func).sweep
        if sweep == "constant":
            return func(*args, **kwargs)
        places, before = self._places(args), args
        if places and isinstance(sweep, No):
            raise Unsupported(f"{func.overloadpacket.__name__}: {sweep.reason}")
        if places and func._schema.is_mutable:
            before = self._before_writing(func, args, places)
        out = func(*args, **kwargs)
        layer = None if found is None else self._meet(*found)
        if places or layer is not None:
            inputs = tuple(self.numbers[id(at(args, place))] for place in places)
            for part, result in enumerate(out) if isinstance(out, list | tuple) else [(None, out)]:
                if isinstance(result, Tensor) and result.is_complex():
                    raise Unsupported(f"{func.overloadpacket.__name__} gives complex numbers")
                if isinstance(result, Tensor) and result.is_floating_point():
                    number = self._number(result)
                    self.calls.append(Call(func, before, kwargs, places, inputs, result, part, number, layer))
        return out

    def _places(self, args: Sequence) -> list[tuple[int, ...]]:
        """Where the arguments are that depend on a layer: those that are tensors, then those in lists."""
        lists = [(i, a) for i, a in enumerate(args) if isinstance(a, list | tuple)]
        places = [((i,), a) for i, a in enumerate(args)] + [((i, j), b) for i, a in lists for j, b in enumerate(a)]
        return [place for place, value in places if isinstance(value, Tensor) and id(value) in self.numbers]

    @staticmethod
    def _before_writing(func: Any, args: Sequence, places: list[tuple[int, ...]]) -> Sequence:
        """The arguments of an operation in place, which still have their values when it has run."""
        name = func.overloadpacket.__name__
        if not name.endswith("_") or (0,) not in places:
            raise Unsupported(f"{name} writes into its arguments")
        return (args[0].clone(), *args[1:])

    def _meet(self, layer: Layer, use: Use) -> str:
        if layer.name in self.uses:
            raise Unsupported(f"{layer.name} acts more than once")
        self.uses[layer.name] = use
        return layer.name

    def _number(self, result: Tensor) -> int:
        self.numbers[id(result)] = number = len(self._results)
        self._results.append(result)
        return number


@dataclass(frozen=True)
class Recording:
    """A forward pass of N samples.

    Attributes:
        outputs: the network's, ``[N, ...]``.
        number: of the outputs among the results, ``None`` if they depend on no layer.
        calls: the operations that depend on a layer, in the order of execution.
        uses: layer -> how its weight acts.
    """

    outputs: Tensor
    number: int | None
    calls: list[Call]
    uses: dict[str, Use]


def record(problem: Problem, inputs: Any, num: int) -> Recording:
    """Record a forward pass of a problem's network.

    Args:
        problem: with its network and its layers.
        inputs: a batch of them, as the problem gives it.
        num: samples of the batch.

    Raises:
        Unsupported: a layer acts more than once or in a way that is not known, or an operation writes into its
        arguments.
    """
    recorder = _Recorder()
    watch = WeightWatch(problem, num, recorder.visit)
    with torch.no_grad(), watch:
        outputs = problem.forward(problem.params, inputs)
    if lost := sorted(watch.unread - recorder.uses.keys()):
        raise Unsupported(
            f"layer {lost[0]} is used by other operations for some samples than for the first ones: "
            "leave it out with --layers"
        )
    return Recording(outputs, recorder.numbers.get(id(outputs)), recorder.calls, recorder.uses)
