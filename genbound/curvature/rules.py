r"""First and second derivatives of single executed operations, for :mod:`genbound.curvature.sweep`.

A *rule* belongs to one executed operation at its own inputs. It carries tangents (:meth:`Rule.tangent`) and, once it
knows the adjoint g of its result, gives :math:`g \cdot F''(x)[t, t]` of every sample (:meth:`Rule.curvature`).
Operations that are affine in what depends on the layers only carry tangents. Elementwise functions are differentiated
twice once and then cost a product; an operation without a rule of its own (:mod:`genbound.curvature.rule_of` knows
which has one) is differentiated by nested forward-mode derivatives, which is slower and as right as torch's (that of a
layer norm is not); whoever sweeps compares first (:func:`genbound.curvature.sweep_trial.can_sweep`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp


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
    """``y = softmax(x)``: ``y' = y (t - m)``, ``y'' = y ((t - m)^2 - v)``.

    Here m and v are the mean and the variance of t under y.
    """

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

    With u the centred tangent and ŷ = (x - mean) / s: ``s y'/w = u - ŷ a``, ``s^2 y''/w = ŷ (3 a^2 - c) - 2 a u`` where
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
