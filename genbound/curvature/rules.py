r"""First and second derivatives of single executed operations, for :mod:`genbound.curvature.sweep`.

A *rule* belongs to one executed operation at its own inputs. It carries tangents (:meth:`Rule.tangent`) and, once it knows the
adjoint g of its result, gives :math:`g \cdot F''(x)[t, t]` of every sample (:meth:`Rule.curvature`). Operations that are affine in what
depends on the layers only carry tangents. Elementwise functions are differentiated twice once and then cost a product;
an operation without a rule of its own is differentiated by nested forward-mode derivatives, which is slower and as right as torch's
(that of a layer norm is not); whoever sweeps compares first (:func:`genbound.curvature.sweep.can_sweep`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp

aten = torch.ops.aten

# Affine in their only moving argument, whichever that is; the others are kept as they were executed.
AFFINE = frozenset(
    {
        aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.transpose, aten.permute, aten.t, aten.expand,
        aten.select, aten.slice, aten.unsqueeze, aten.squeeze, aten.clone, aten.contiguous, aten._to_copy, aten.alias,
        aten.neg, aten.sum, aten.mean, aten.flatten, aten.index, aten.index_select, aten.gather, aten.unfold,
        aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.avg_pool1d, aten.movedim, aten.roll, aten.flip, aten.narrow, aten.diagonal,
        aten.cat, aten.stack, aten.lift_fresh, aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.pixel_shuffle, aten.repeat,
    }
)  # fmt: skip
# Of these, the ones whose every result is one entry of the argument.
MOVES = frozenset(
    {
        aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.transpose, aten.permute, aten.t, aten.expand,
        aten.select, aten.slice, aten.unsqueeze, aten.squeeze, aten.clone, aten.contiguous, aten._to_copy, aten.alias,
        aten.flatten, aten.movedim, aten.flip, aten.narrow,
    }
)  # fmt: skip
SEVERAL = frozenset({aten.split, aten.split_with_sizes, aten.unbind, aten.chunk})  # affine, a list of results
ELEMENTWISE = frozenset(
    {
        aten.gelu, aten.tanh, aten.sigmoid, aten.silu, aten.exp, aten.log, aten.log1p, aten.sqrt, aten.rsqrt, aten.pow, aten.erf,
        aten.softplus, aten.mish, aten.hardswish, aten.elu, aten.sin, aten.cos, aten.square, aten.reciprocal, aten.log_sigmoid,
    }
)  # fmt: skip
PIECEWISE = frozenset(
    {aten.relu, aten.leaky_relu, aten.hardtanh, aten.clamp, aten.clamp_min, aten.clamp_max, aten.threshold, aten.abs}
)
PRODUCTS = frozenset({aten.mul, aten.mm, aten.bmm, aten.matmul})


class Rule(ABC):
    """One operation at its own inputs; ``curved`` if its second derivative does not vanish."""

    curved = False

    @abstractmethod
    def tangent(self, tangents: Sequence[Tensor | None]) -> Tensor:
        """Tangent of the result from those of the moving arguments; ``None`` is an exact zero, not all are."""

    def weigh(self, adjoint: Tensor) -> None:
        """Learn the adjoint of the result, once for all directions."""
        self.adjoint = adjoint

    def curvature(self, tangents: Sequence[Tensor | None], num: int) -> Tensor | None:
        """``g . F''[t, t]`` of each of ``num`` samples, ``[num]``; ``None`` where that vanishes."""
        return None

    def variance(self, variance: Tensor) -> Tensor | None:
        """Of the result's entries, if each of them is one entry of the only moving argument times a constant."""
        return None


def _dot(a: Tensor, b: Tensor, num: int) -> Tensor:
    """Inner products of the samples' parts."""
    return torch.linalg.vecdot(a.reshape(num, -1), b.reshape(num, -1))


class Affine(Rule):
    """``moves`` or ``scales`` tell that each result is one entry of the argument, or such a one times a constant."""

    def __init__(self, apply: Callable[[Tensor], Tensor], moves: bool = False, scales: bool = False):
        self.apply, self.moves, self.scales = apply, moves, scales

    def tangent(self, tangents):
        return self.apply(tangents[0])

    def variance(self, variance):
        if self.moves:
            return self.apply(variance)
        return self.apply(self.apply(variance)) if self.scales else None


class Joined(Rule):
    """``cat`` and ``stack``: affine in several arguments together."""

    def __init__(self, apply, like: Sequence[Tensor]):
        self.apply, self.shapes = apply, [(x.shape, x.dtype, x.device) for x in like]

    def tangent(self, tangents):
        return self.apply([
            torch.zeros(shape, dtype=dtype, device=device) if t is None else t
            for t, (shape, dtype, device) in zip(tangents, self.shapes, strict=True)
        ])  # fmt: skip


class Sum(Rule):
    """``add`` and ``sub`` with their factor."""

    def __init__(self, shape, factors: Sequence[float]):
        self.shape, self.factors = shape, factors

    def tangent(self, tangents):
        total = None
        for t, factor in zip(tangents, self.factors, strict=True):
            if t is not None:
                term = t if factor == 1 else factor * t
                total = term if total is None else total + term
        return total if total.shape == self.shape else total.expand(self.shape)


class Product(Rule):
    """Bilinear, both factors moving."""

    curved = True

    def __init__(self, apply, a: Tensor, b: Tensor):
        self.apply, self.a, self.b = apply, a, b

    def tangent(self, tangents):
        s, t = tangents
        if s is None:
            return self.apply(self.a, t)
        return self.apply(s, self.b) if t is None else self.apply(s, self.b) + self.apply(self.a, t)

    def curvature(self, tangents, num):
        s, t = tangents
        return None if s is None or t is None else 2 * _dot(self.adjoint, self.apply(s, t), num)


class Elementwise(Rule):
    """``f(x)`` entry by entry."""

    def __init__(self, apply, x: Tensor, curved: bool):
        self.curved = curved
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            self.first = torch.autograd.grad(apply(x).sum(), x, create_graph=curved)[0]
            if curved:
                moves = self.first.requires_grad
                self.second = torch.autograd.grad(self.first.sum(), x)[0] if moves else torch.zeros_like(x)
                self.first = self.first.detach()

    def tangent(self, tangents):
        return self.first * tangents[0]

    def weigh(self, adjoint):
        self.second = self.second * adjoint

    def curvature(self, tangents, num):
        return _dot(self.second * tangents[0], tangents[0], num)

    def variance(self, variance):
        return None if self.curved else self.first.square() * variance


class Softmax(Rule):
    """``y = softmax(x)``: ``y' = y (t - m)``, ``y'' = y ((t - m)^2 - v)`` with m and v the mean and variance of t under y."""

    curved = True

    def __init__(self, y: Tensor, axis: int):
        self.y, self.axis = y, axis

    def _parts(self, t):
        moved = self.y * t
        return moved, moved.sum(self.axis, keepdim=True)

    def tangent(self, tangents):
        moved, mean = self._parts(tangents[0])
        return torch.addcmul(moved, self.y, mean, value=-1)

    def weigh(self, adjoint):
        # Sum over the axis of g y ((t - m)^2 - v): the adjoint's own mean under y takes the place of v.
        self.weight = self.y * (adjoint - (self.y * adjoint).sum(self.axis, keepdim=True))

    def curvature(self, tangents, num):
        centred = tangents[0] - self._parts(tangents[0])[1]
        return _dot(self.weight * centred, centred, num)


class LayerNorm(Rule):
    r"""``y = w (x - mean) / s + b`` with ``s^2 = var + eps``.

    With u the centred tangent and ŷ = (x - mean) / s:  ``s y'/w = u - ŷ a``, ``s^2 y''/w = ŷ (3 a^2 - c) - 2 a u`` where
    a = mean(ŷ u) and c = mean(u^2).
    """

    curved = True

    def __init__(self, x: Tensor, axes: int, weight: Tensor | None, eps: float):
        self.axes = tuple(range(-axes, 0))
        centred = x - x.mean(self.axes, keepdim=True)
        self.inverse = (centred.square().mean(self.axes, keepdim=True) + eps).rsqrt()
        self.normal, self.weight = centred * self.inverse, weight

    def _parts(self, t):
        u = (t - t.mean(self.axes, keepdim=True)) * self.inverse
        return u, (self.normal * u).mean(self.axes, keepdim=True)

    def tangent(self, tangents):
        u, a = self._parts(tangents[0])
        y = torch.addcmul(u, self.normal, a, value=-1)
        return y if self.weight is None else y * self.weight

    def weigh(self, adjoint):
        self.adjoint = adjoint if self.weight is None else adjoint * self.weight
        self.projected = (self.adjoint * self.normal).sum(self.axes, keepdim=True)

    def curvature(self, tangents, num):
        u, a = self._parts(tangents[0])
        c = u.square().mean(self.axes, keepdim=True)
        each = self.projected * (3 * a.square() - c) - 2 * a * (self.adjoint * u).sum(self.axes, keepdim=True)
        return each.reshape(num, -1).sum(1)


class Nested(Rule):
    """Any operation, by forward-mode derivatives of forward-mode derivatives."""

    curved = True

    def __init__(self, apply, inputs: Sequence[Tensor]):
        self.apply, self.inputs = apply, [x.detach() for x in inputs]

    def _filled(self, tangents):
        return tuple(torch.zeros_like(x) if t is None else t for x, t in zip(self.inputs, tangents, strict=True))

    def tangent(self, tangents):
        return jvp(self.apply, tuple(self.inputs), self._filled(tangents))[1]

    def curvature(self, tangents, num):
        ts = self._filled(tangents)
        second = jvp(lambda *xs: jvp(self.apply, xs, ts)[1], tuple(self.inputs), ts)[1]
        return _dot(self.adjoint, second, num)


def at(args: Sequence, place: tuple[int, ...]):
    """The argument at ``(i,)``, or at ``(i, j)`` inside a list."""
    return args[place[0]] if len(place) == 1 else args[place[0]][place[1]]


def find_rule(
    func, args: Sequence, kwargs: dict, places: Sequence[tuple[int, ...]], out: Tensor, part: int | None
) -> Rule:
    """The rule of an executed operation.

    Args:
        func: the operation, with its ``args`` and ``kwargs`` as they were before it ran.
        places: which arguments depend on a layer, see :func:`at`.
        out: its result, or the one numbered ``part`` if it has several.
    """
    kind = func.overloadpacket
    if func._schema.is_mutable:  # the same without writing
        func = kind = getattr(aten, kind.__name__.removesuffix("_"))

    values, original = [at(args, place) for place in places], args
    # What the rules keep of the arguments is without those that move: they would hold on to every result of the pass.
    args = [
        [None if (i, j) in places else b for j, b in enumerate(a)] if isinstance(a, list | tuple) else None if (i,) in places else a
        for i, a in enumerate(args)
    ]  # fmt: skip

    def apply(*values):
        given = list(args)
        for place, value in zip(places, values, strict=True):
            if len(place) == 1:
                given[place[0]] = value
            else:
                given[place[0]] = list(given[place[0]])
                given[place[0]][place[1]] = value
        result = func(*given, **kwargs)
        return result if part is None else result[part]

    single = len(places) == 1
    if kind in (aten.cat, aten.stack):
        axis = [p[1] for p in places]
        others = [torch.zeros_like(x) for x in original[0]]

        def join(ts):
            for j, t in zip(axis, ts, strict=True):
                others[j] = t
            return func(others, *args[1:], **kwargs)

        return Joined(join, values)
    if kind in (aten.view, aten._unsafe_view):  # a tangent may lie in memory otherwise
        return Affine(lambda t: t.reshape(args[1]), moves=True)
    if kind in (AFFINE | SEVERAL) and single:
        return Affine(apply, moves=kind in MOVES | SEVERAL)
    if kind in (aten.add, aten.sub):
        sign = (kwargs.get("alpha", 1) if len(args) < 3 else args[2]) * (1 if kind is aten.add else -1)
        return Sum(out.shape, [1 if p == (0,) else sign for p in places])
    if kind in PRODUCTS:
        if not single:
            return Product(apply, *values)
        return Affine(apply, scales=kind is aten.mul and out.shape == values[0].shape)
    if kind is aten.div and places == [(0,)] and not kwargs.get("rounding_mode"):
        return Affine(apply, scales=out.shape == values[0].shape)
    if kind is aten.addmm and (0,) not in places and single and kwargs.get("alpha", 1) == 1:
        return Affine(lambda t: torch.mm(t, args[2]) if places == [(1,)] else torch.mm(args[1], t))
    if kind is aten.baddbmm and (0,) not in places and kwargs.get("alpha", 1) == 1:
        if single:
            return Affine(lambda t: torch.bmm(t, args[2]) if places == [(1,)] else torch.bmm(args[1], t))
        return Product(torch.bmm, *values)
    if kind is aten.convolution and places == [(0,)]:
        return Affine(lambda t: func(t, args[1], None, *args[3:], **kwargs))
    if kind is aten.masked_fill and places == [(0,)]:
        return Affine(lambda t: t.masked_fill(args[1], 0))
    if kind is aten.where and single and places != [(0,)]:
        here = args[0] if places == [(1,)] else ~args[0]
        return Affine(lambda t: torch.where(here, t, torch.zeros((), dtype=t.dtype, device=t.device)))
    if kind is aten.constant_pad_nd:
        return Affine(lambda t: func(t, args[1]))
    evaluating = kind is aten._native_batch_norm_legit_no_training or (
        kind in (aten.native_batch_norm, aten.cudnn_batch_norm) and not args[5]
    )
    if evaluating and places == [(0,)]:
        ones = torch.ones_like(values[0])
        slope = jvp(apply, (values[0].detach(),), (ones,))[1]  # in evaluation mode it is diagonal
        return Affine(lambda t: slope * t, scales=True)
    if kind is aten.max_pool2d_with_indices and places == [(0,)]:
        index = func(*original, **kwargs)[1]
        return Affine(lambda t: t.flatten(2).gather(2, index.flatten(2)).view(index.shape))
    if kind is aten.native_layer_norm and places == [(0,)]:
        return LayerNorm(values[0], len(args[1]), args[2], args[4])
    if kind in (aten._softmax, aten._safe_softmax, aten.softmax) and places == [(0,)]:
        return Softmax(out, args[1])
    if kind in ELEMENTWISE and places == [(0,)] and out.shape == values[0].shape:
        return Elementwise(apply, values[0], True)
    if kind in PIECEWISE and places == [(0,)] and out.shape == values[0].shape:
        return Elementwise(apply, values[0], False)
    return Nested(apply, values)
