r"""Runs a network on sums over paths.

A tensor of sums holds, in place of every unit's activation, the sum over all paths that lead to it from the input of
the products of the squared weights, for an input of ones. What an operation makes of such sums is named in the table of
operations (``paths``):

* activations pass them on, as ReLU does with what is not negative; what moves, adds up or averages entries does so with
  sums;
* a weight that meets them is squared, with a batch norm in evaluation mode folded into it; so is a constant that is
  added, put in or joined, as the weight of an edge from a unit that is always 1; a constant factor keeps its size;
* a maximum hands on the larger sum, and so does a minimum, which is the maximum of the same paths with the opposite
  sign.

Every tensor of sums carries the logarithm of a common factor and is scaled to a maximum of 1, so that deep networks do
not overflow. Sums have no unit but that of the products of squared weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.network.operation import No
from genbound.network.operations import of_aten
from genbound.structure.call_record import tensors


class UnsupportedOperation(Exception):
    """An operation that is no sum over paths; the argument is its name and the reason."""


@dataclass
class _Scaled:
    """The non-negative tensor ``values * exp(log)``; after a layer, also its linear part and signed bias."""

    values: Tensor
    log: float
    layer: tuple[_Scaled, Tensor | None] | None = None

    def normalised(self) -> _Scaled:
        largest = float(self.values.max()) if self.values.numel() else 0.0
        if largest == 0.0:
            return _Scaled(self.values, -math.inf)
        return _Scaled(self.values / largest, self.log + math.log(largest))

    def times(self, factor: float | Tensor) -> _Scaled:
        """By a number or by numbers that fit; none is negative."""
        return _Scaled(self.values * factor, self.log).normalised()

    def __add__(self, other: _Scaled) -> _Scaled:
        log = max(self.log, other.log)
        if log == -math.inf:
            return _Scaled(self.values + other.values, -math.inf)
        a, b = math.exp(self.log - log), math.exp(other.log - log)
        return _Scaled(a * self.values + b * other.values, log).normalised()


@dataclass
class _Call:
    """An executed operation that is given at least one tensor of sums."""

    func: Any
    args: Sequence
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.func.overloadpacket.__name__

    def argument(self, position: int, name: str, default: Any) -> Any:
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def refuse(self, reason: str) -> UnsupportedOperation:
        return UnsupportedOperation(f"{self.name} ({reason})")


class PathSums(TorchDispatchMode):
    """Runs a network on sums over paths.

    Args:
        inputs: ones in float64, in the shape of a sample, ``[1, ...]``.
    """

    def __init__(self, inputs: Tensor):
        super().__init__()
        # The tensors are kept, so that no other one takes over the identity of one that was freed.
        self.known: dict[int, tuple[Tensor, _Scaled]] = {}
        self._numbers: dict[int, Tensor] = {}  # whole numbers that were read off sums: places of the largest
        self.track(inputs, _Scaled(inputs, 0.0))

    def track(self, tensor: Tensor, scaled: _Scaled) -> Tensor:
        """Remember that a tensor stands for ``scaled``, and return it."""
        self.known[id(tensor)] = (tensor, scaled)
        return tensor

    def get(self, tensor: Any) -> _Scaled | None:
        """The sums that a tensor stands for, in its shape; ``None`` if it stands for itself."""
        entry = self.known.get(id(tensor))
        return None if entry is None else entry[1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        call = _Call(func, args, kwargs or {})
        given = list(tensors((args, call.kwargs)))
        if any(id(t) in self._numbers for t in given):
            raise call.refuse("it depends on which sum is the largest")
        if not any(self.get(t) is not None for t in given):
            return func(*args, **call.kwargs)
        paths = of_aten(func).paths
        if isinstance(paths, No):
            raise call.refuse(paths.reason)
        found = PATHS[paths](self, call)
        if not isinstance(found, _Scaled):
            return found
        return self._write(call, found) if func._schema.is_mutable else self._save(found)

    def _save(self, scaled: _Scaled) -> Tensor:
        return self.track(scaled.values, scaled)

    def _write(self, call: _Call, found: _Scaled) -> Tensor:
        """In place of the first argument."""
        target = call.args[0]
        memory = target.untyped_storage().data_ptr()
        if any(t is not target and t.untyped_storage().data_ptr() == memory for t, _ in self.known.values()):
            raise call.refuse("it writes into what is also seen as another tensor")
        return self.track(target, found)

    def first(self, call: _Call) -> _Scaled:
        """The sums that the first argument stands for; no other argument may be one."""
        known = [self.get(t) is not None for t in tensors((call.args, call.kwargs))]
        if self.get(call.args[0]) is None or sum(known) != 1:
            raise call.refuse("it is given several sums, or one in an unusual place")
        return self.get(call.args[0])

    def term(self, value: Tensor | float) -> _Scaled:
        """Sums, or a constant as the weight of an edge from a unit that is always 1."""
        known = self.get(value)
        if known is not None:
            return known
        value = value.double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        return _Scaled(value.square(), 0.0).normalised()

    def together(self, terms: Sequence[_Scaled], function: Callable[[list[Tensor]], Tensor]) -> _Scaled:
        """A function of several sums that is homogeneous in them jointly."""
        log = max(term.log for term in terms)
        if log == -math.inf:
            return _Scaled(function([term.values for term in terms]), log)
        return _Scaled(function([term.values * math.exp(term.log - log) for term in terms]), log)

    def several(self, found: Any, log: float) -> Any:
        """Keep the results of an operation that was run on sums with a common factor."""
        for result in tensors(found):
            if result.is_floating_point():
                self.track(result, _Scaled(result, log))
            else:
                self._numbers[id(result)] = result
        return found


def _pass(sums: PathSums, call: _Call) -> _Scaled:
    """Handed on."""
    # In a tensor of its own, which may be written into. What comes behind is no longer right behind a layer.
    first = sums.first(call)
    return _Scaled(first.values.clone(), first.log)


def _keep(sums: PathSums, call: _Call) -> _Scaled:
    """Handed on in its precision."""
    first = sums.first(call)
    return _Scaled(first.values.clone(), first.log, first.layer)


def _apply(sums: PathSums, call: _Call) -> Any:
    """Done to sums as to numbers."""
    first = sums.first(call)
    return sums.several(call.func(first.values, *call.args[1:], **call.kwargs), first.log)


def _laid_out(sums: PathSums, call: _Call) -> _Scaled:
    """Handed on where only the strides of axes of one entry are others."""
    x, (size, strides) = call.args[0], call.args[1:3]
    placed = tuple(x.shape) == tuple(size) and call.argument(3, "storage_offset", None) in (None, x.storage_offset())
    if not placed or any(n > 1 and old != new for n, old, new in zip(size, x.stride(), strides, strict=True)):
        raise call.refuse("what it hands on depends on how entries lie in memory")
    found = _keep(sums, call)
    if call.func._schema.is_mutable:
        call.func(*call.args, **call.kwargs)
    return found


def _constant(sums: PathSums, call: _Call) -> Any:
    """No sum: only the size is taken."""
    return call.func(*call.args, **call.kwargs)


# -- weights --------------------------------------------------------------------------------------------------------


def _layer(linear: Tensor, log: float, bias: Tensor | None, view: Callable[[Tensor], Tensor]) -> _Scaled:
    part = _Scaled(linear, log).normalised()
    total = part if bias is None else part + _Scaled(view(bias).square().expand_as(linear), 0.0).normalised()
    # A tensor of its own: the linear part may serve a batch norm.
    return _Scaled(total.values.clone(), total.log, (part, bias))


def _convolution(sums: PathSums, call: _Call) -> _Scaled:
    """The kernel and the bias are squared."""
    first, (weight, bias) = sums.first(call), call.args[1:3]
    linear = call.func(first.values, weight.double().square(), None, *call.args[3:], **call.kwargs)
    bias = None if bias is None else bias.double()
    return _layer(linear, first.log, bias, lambda b: b.view(-1, *[1] * (linear.dim() - 2)))


def _matrix(sums: PathSums, call: _Call) -> _Scaled:
    """The matrix, and what is added, are squared."""
    if call.kwargs:
        raise call.refuse("its product or its summand has a factor")
    added, factors = call.args[:-2], call.args[-2:]
    left, right = (sums.get(f) for f in factors)
    if (left is None) == (right is None):
        raise call.refuse("both of its factors depend on the input")
    known = right if left is None else left
    x, y = (f.double().square() if own is None else own.values for f, own in zip(factors, (left, right), strict=True))
    product = torch.matmul(x, y)
    if left is not None and product.dim() == 2 and not (added and sums.get(added[0]) is not None):
        return _layer(product, known.log, added[0].double() if added else None, lambda b: b)
    found = _Scaled(product, known.log).normalised()
    return found + sums.term(added[0]) if added else found


def _batch_norm(sums: PathSums, call: _Call) -> Any:
    """Part of the layer before it, or a layer of its own."""
    x, (weight, bias, mean, variance) = sums.first(call), call.args[1:5]
    if mean is None or variance is None:
        raise call.refuse("it has no running statistics")
    eps = call.args[6 if call.name == "_native_batch_norm_legit_no_training" else 7]
    part, before = x.layer if x.layer is not None else (x, None)
    shape = (-1, *[1] * (part.values.dim() - 2))
    scale = (variance.double() + eps).rsqrt() * (1.0 if weight is None else weight.double())
    shift = (0.0 if before is None else before) - mean.double()
    constant = scale * shift + (0.0 if bias is None else bias.double())
    found = _layer(part.values * scale.square().view(shape), part.log, constant, lambda b: b.view(shape))
    # In one type: only the statistics that it returns beside its result are used.
    plain = [a.double() if isinstance(a, Tensor) else a for a in call.args]
    return (sums.track(found.values, found), *call.func(*plain, **call.kwargs)[1:])


# -- arithmetic -----------------------------------------------------------------------------------------------------


def _add(sums: PathSums, call: _Call) -> _Scaled:
    """The sums are added, a constant squared; signs do not matter."""
    factors = [1.0, abs(float(call.argument(2, "alpha", 1)))]
    if of_aten(call.func).name == "rsub":
        factors.reverse()
    terms = [sums.term(value) for value in call.args[:2]]
    first, second = (term if factor == 1 else term.times(factor) for term, factor in zip(terms, factors, strict=True))
    return first + second


def _factor(sums: PathSums, call: _Call) -> _Scaled:
    """Scaled: a factor that is a tensor is squared as a weight, a number keeps its size."""
    position = 0 if sums.get(call.args[0]) is not None else 1
    known, other = sums.get(call.args[position]), call.args[1 - position]
    divides = of_aten(call.func).name == "div"
    if sums.get(other) is not None:
        raise call.refuse("both of its factors depend on the input")
    if call.kwargs.get("rounding_mode") or (divides and position == 1):
        raise call.refuse("it rounds, or divides by what depends on the input")
    size = other.double().square() if isinstance(other, Tensor) and other.dim() else abs(float(other))
    return _Scaled(known.values / size if divides else known.values * size, known.log).normalised()


def _larger(sums: PathSums, call: _Call) -> Any:
    """The larger sum."""
    largest = {"amin": "amax", "min": "max", "minimum": "maximum", "fmin": "fmax"}
    func = getattr(torch.ops.aten, largest.get(call.name, call.name))
    if of_aten(call.func).elementwise:
        return sums.together([sums.term(value) for value in call.args[:2]], lambda values: func(*values))
    first = sums.first(call)
    return sums.several(func(first.values, *call.args[1:], **call.kwargs), first.log)


def _join(sums: PathSums, call: _Call) -> _Scaled:
    """Joined, constants squared."""
    return sums.together(
        [sums.term(value) for value in call.args[0]], lambda values: call.func(values, *call.args[1:], **call.kwargs)
    )


def _fill(sums: PathSums, call: _Call) -> _Scaled:
    """What is put in is squared."""
    name = of_aten(call.func).name
    if name == "where":
        mask, *parts = call.args
        return sums.together([sums.term(part) for part in parts], lambda values: torch.where(mask, *values))
    first, value = sums.first(call), call.argument(2, "value", 0)
    put_in = sums.term(value)
    if not bool(torch.isfinite(put_in.values).all()):
        raise call.refuse("what it puts in is not finite")

    def fill(x: Tensor, number: float) -> Tensor:
        return x.masked_fill(call.args[1], number) if name == "masked_fill" else call.func(x, call.args[1], number)

    kept, places = fill(first.values, 0.0), fill(torch.zeros_like(first.values), 1.0)
    return _Scaled(kept, first.log).normalised() + _Scaled(places * put_in.values, put_in.log).normalised()


PATHS: dict[str, Callable[[PathSums, _Call], Any]] = {
    "pass": _pass, "keep": _keep, "apply": _apply, "laid_out": _laid_out, "constant": _constant,
    "convolution": _convolution, "matrix": _matrix, "batch_norm": _batch_norm, "add": _add, "factor": _factor,
    "larger": _larger, "join": _join, "fill": _fill,
}  # fmt: skip
