"""What operations were called with, and what depends on the network's input beside autograd's record.

Autograd keeps what derivatives need: not the value that a threshold puts in, nor whether a mask was made from the
input. Below autograd every operation is seen with its arguments; the number that autograd has just given to a node
tells which node it is.

What depends on the input is followed by the memory that it lies in, through detached tensors, comparisons and whole
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.data.sample_parts import stored_parts
from genbound.network.operation import Operation
from genbound.network.operations import of_aten

_LEAVING = frozenset("_local_scalar_dense is_nonzero equal".split())  # what they give is a number in Python


@dataclass
class Call:
    """An operation with its arguments, as it was called below autograd.

    Attributes:
        func: the operation (``aten.threshold.default``).
        args, kwargs: its arguments.
        moving: of each tensor among the arguments, whether it depends on the input that is followed, in whatever way.
        varying: likewise, whether it depends on any of the sample's inputs.
    """

    func: Callable
    args: tuple
    kwargs: dict[str, Any]
    moving: list[bool]
    varying: list[bool]

    @property
    def fixed(self) -> list[Tensor]:
        """The tensors that do not depend on the followed input, without masks."""
        given = zip(tensors((self.args, self.kwargs)), self.moving, strict=True)
        return [t for t, moves in given if not moves and t.dtype != torch.bool]

    def argument(self, position: int, name: str, default: Any) -> Any:
        """The argument at a position or of that name; it may have been left out."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


class _Memory:
    """The memory of tensors; they are kept, so that none of it is given to others."""

    def __init__(self):
        self._kept: dict[int, Tensor] = {}

    def add(self, values: Any) -> None:
        for tensor in tensors(values):
            for part in stored_parts(tensor):
                if part.numel():
                    self._kept.setdefault(part.untyped_storage().data_ptr(), tensor)

    def holds(self, given: list[Tensor]) -> list[bool]:
        return [any(part.untyped_storage().data_ptr() in self._kept for part in stored_parts(t)) for t in given]


class CallRecord(TorchDispatchMode):
    """Keeps the calls of a forward pass in which gradients are recorded.

    Attributes:
        left: whether a number that depends on the followed input was turned into one of Python, where nobody follows
            it.
    """

    def __init__(self):
        super().__init__()
        self._calls: dict[int, list[Call]] = {}
        self._moving, self._varying = _Memory(), _Memory()
        self.left = False

    def follow(self, inputs: Any) -> None:
        """Follow the inputs of a sample; one that requires a gradient is the input that the structure is about."""
        self._varying.add(inputs)
        self._moving.add([t for t in tensors(inputs) if t.requires_grad])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        given = list(tensors((args, kwargs)))
        call = Call(func, args, kwargs, self._moving.holds(given), self._varying.holds(given))
        out = func(*args, **kwargs)
        self._calls.setdefault(torch._C._autograd._get_sequence_nr() - 1, []).append(call)
        if of_aten(func).name != "like":  # these take the size only
            changed = [a for a, said in zip(args, func._schema.arguments, strict=False) if written(said)]
            for memory, held in ((self._moving, call.moving), (self._varying, call.varying)):
                if any(held):
                    memory.add((out, changed))
            self.left |= any(call.moving) and name in _LEAVING
        return out

    def find(self, node, row: Operation) -> Call | None:
        """The call behind a node of autograd's record, if it was seen.

        An operation that writes into its argument may copy that first: the copy then takes the next number as well.
        """
        number = node._sequence_nr()
        first, later = self._calls.get(number, []), self._calls.get(number + 1, [])
        found = [*first[:1], *(call for call in later if call.func._schema.is_mutable)]
        return next((call for call in found if of_aten(call.func) is row), None)


def written(argument: Any) -> bool:
    """An argument of an operation's schema that the operation writes into."""
    return argument.alias_info is not None and argument.alias_info.is_write


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)
