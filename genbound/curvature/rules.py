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

from genbound.errors import GenboundError
from genbound.network.forward_mode import jvp

Tangents = Sequence[Tensor | None]


class Unsupported(GenboundError):
    """The forward pass holds something that tangents are not carried through; the message says what."""


class Rule(ABC):
    """One operation F at its own inputs x, for samples that come first in its result.

    A tangent has the shape of what it belongs to: of an argument that depends on a layer, or of the result.

    Attributes:
        curved: the second derivative does not vanish.
        adjoint: of the result, in its shape, once :meth:`weigh` was called: the derivative g of a scalar in it.
    """

    curved = False
    adjoint: Tensor

    @abstractmethod
    def tangent(self, tangents: Tangents) -> Tensor:
        """Tangent of the result from those of the moving arguments; ``None`` is an exact zero, not all are."""

    def weigh(self, adjoint: Tensor) -> None:
        """Learn the adjoint of the result, in its shape, once for all directions."""
        self.adjoint = adjoint

    def curvature(self, tangents: Tangents, num: int) -> Tensor | None:
        """``g . F''[t, t]`` of each of ``num`` samples, ``[num]`` in the scalar's unit; ``None`` where it vanishes."""
        return None

    def variance(self, variance: Tensor) -> Tensor | None:
        """Of the result's entries, in its shape, from those of the only moving argument, in its shape.

        ``None`` unless each entry of the result is one of the argument's times a constant.
        """
        return None


def _dot(a: Tensor, b: Tensor, num: int) -> Tensor:
    """Inner products of the samples' parts, ``[num]``.

    Raises:
        Unsupported: the entries are not the samples', as where an operation has weights alone for arguments.
    """
    if a.numel() % num:
        raise Unsupported(f"a result of {a.numel()} entries is curved and is not made of {num} samples' parts")
    return torch.linalg.vecdot(a.reshape(num, -1), b.reshape(num, -1))


class Affine(Rule):
    """Affine in one argument.

    Args:
        apply: the linear part, from a tangent of the argument to that of the result.
        moves: every entry of the result is one of the argument's.
        scales: every entry of the result is one of the argument's times a constant.
    """

    def __init__(self, apply: Callable[[Tensor], Tensor], moves: bool = False, scales: bool = False):
        self.apply, self.moves, self.scales = apply, moves, scales

    def tangent(self, tangents: Tangents) -> Tensor:
        return self.apply(tangents[0])

    def variance(self, variance: Tensor) -> Tensor | None:
        if self.moves:
            return self.apply(variance)
        return self.apply(self.apply(variance)) if self.scales else None


class Joined(Rule):
    """``cat`` and ``stack``: affine in several arguments together.

    Args:
        apply: from their tangents to that of the result.
        like: the arguments that move, for their shapes, types and devices.
    """

    def __init__(self, apply: Callable[[Sequence[Tensor]], Tensor], like: Sequence[Tensor]):
        self.apply, self.shapes = apply, [(x.shape, x.dtype, x.device) for x in like]

    def tangent(self, tangents: Tangents) -> Tensor:
        return self.apply([
            torch.zeros(shape, dtype=dtype, device=device) if t is None else t
            for t, (shape, dtype, device) in zip(tangents, self.shapes, strict=True)
        ])  # fmt: skip


class Sum(Rule):
    """``add`` and ``sub`` with their factor.

    Args:
        shape: of the result.
        factors: one for each moving argument.
    """

    def __init__(self, shape: torch.Size, factors: Sequence[float]):
        self.shape, self.factors = shape, factors

    def tangent(self, tangents: Tangents) -> Tensor:
        total = None
        for t, factor in zip(tangents, self.factors, strict=True):
            if t is not None:
                term = t if factor == 1 else factor * t
                total = term if total is None else total + term
        return total if total.shape == self.shape else total.expand(self.shape)


class Product(Rule):
    """Bilinear, both factors moving.

    Args:
        apply: the product of two tensors in the shapes of ``a`` and ``b``.
        a: the first factor.
        b: the second.
    """

    curved = True

    def __init__(self, apply: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor):
        self.apply, self.a, self.b = apply, a, b

    def tangent(self, tangents: Tangents) -> Tensor:
        s, t = tangents
        if s is None:
            return self.apply(self.a, t)
        return self.apply(s, self.b) if t is None else self.apply(s, self.b) + self.apply(self.a, t)

    def curvature(self, tangents: Tangents, num: int) -> Tensor | None:
        s, t = tangents
        return None if s is None or t is None else 2 * _dot(self.adjoint, self.apply(s, t), num)


class Elementwise(Rule):
    """``f(x)`` entry by entry.

    Args:
        apply: f, on a tensor in the shape of x.
        x: the argument.
        curved: whether f has a second derivative other than zero.

    Attributes:
        first: ``f'(x)``, in the shape of x.
        second: ``f''(x)``, and once the adjoint is known ``g f''(x)``, in the shape of x.
    """

    def __init__(self, apply: Callable[[Tensor], Tensor], x: Tensor, curved: bool):
        self.curved = curved
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            self.first = torch.autograd.grad(apply(x).sum(), x, create_graph=curved)[0]
            if curved:
                moves = self.first.requires_grad
                self.second = torch.autograd.grad(self.first.sum(), x)[0] if moves else torch.zeros_like(x)
                self.first = self.first.detach()

    def tangent(self, tangents: Tangents) -> Tensor:
        return self.first * tangents[0]

    def weigh(self, adjoint: Tensor) -> None:
        self.second = self.second * adjoint

    def curvature(self, tangents: Tangents, num: int) -> Tensor | None:
        return _dot(self.second * tangents[0], tangents[0], num)

    def variance(self, variance: Tensor) -> Tensor | None:
        return None if self.curved else self.first.square() * variance


class Softmax(Rule):
    """``y = softmax(x)``: ``y' = y (t - m)``, ``y'' = y ((t - m)^2 - v)``, m and v the mean and variance of t under y.

    Args:
        y: the result.
        axis: along which it adds up to 1.
    """

    curved = True

    def __init__(self, y: Tensor, axis: int):
        self.y, self.axis = y, axis

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        moved = self.y * t
        return moved, moved.sum(self.axis, keepdim=True)

    def tangent(self, tangents: Tangents) -> Tensor:
        moved, mean = self._parts(tangents[0])
        return torch.addcmul(moved, self.y, mean, value=-1)

    def weigh(self, adjoint: Tensor) -> None:
        # Sum over the axis of g y ((t - m)^2 - v): the adjoint's own mean under y takes the place of v.
        self.weight = self.y * (adjoint - (self.y * adjoint).sum(self.axis, keepdim=True))

    def curvature(self, tangents: Tangents, num: int) -> Tensor | None:
        centred = tangents[0] - self._parts(tangents[0])[1]
        return _dot(self.weight * centred, centred, num)


class LayerNorm(Rule):
    r"""``y = w (x - mean) / s + b`` with ``s^2 = var + eps``.

    With u the centred tangent and ŷ = (x - mean) / s:  ``s y'/w = u - ŷ a``, ``s^2 y''/w = ŷ (3 a^2 - c) - 2 a u``
    where a = mean(ŷ u) and c = mean(u^2).

    Args:
        x: the argument.
        axes: how many of the last ones the mean and the variance are taken over.
        weight: w, in the shape of those axes, or ``None`` for 1.
        eps: added to the variance.
    """

    curved = True

    def __init__(self, x: Tensor, axes: int, weight: Tensor | None, eps: float):
        self.axes = tuple(range(-axes, 0))
        centred = x - x.mean(self.axes, keepdim=True)
        self.inverse = (centred.square().mean(self.axes, keepdim=True) + eps).rsqrt()
        self.normal, self.weight = centred * self.inverse, weight

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = (t - t.mean(self.axes, keepdim=True)) * self.inverse
        return u, (self.normal * u).mean(self.axes, keepdim=True)

    def tangent(self, tangents: Tangents) -> Tensor:
        u, a = self._parts(tangents[0])
        y = torch.addcmul(u, self.normal, a, value=-1)
        return y if self.weight is None else y * self.weight

    def weigh(self, adjoint: Tensor) -> None:
        self.adjoint = adjoint if self.weight is None else adjoint * self.weight
        self.projected = (self.adjoint * self.normal).sum(self.axes, keepdim=True)

    def curvature(self, tangents: Tangents, num: int) -> Tensor | None:
        u, a = self._parts(tangents[0])
        c = u.square().mean(self.axes, keepdim=True)
        each = self.projected * (3 * a.square() - c) - 2 * a * (self.adjoint * u).sum(self.axes, keepdim=True)
        return each.reshape(num, -1).sum(1)


class Nested(Rule):
    """Any operation, by forward-mode derivatives of forward-mode derivatives.

    Args:
        apply: the operation as a function of the moving arguments.
        inputs: what these were.
    """

    curved = True

    def __init__(self, apply: Callable[..., Tensor], inputs: Sequence[Tensor]):
        self.apply, self.inputs = apply, [x.detach() for x in inputs]

    def _filled(self, tangents: Tangents) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(x) if t is None else t for x, t in zip(self.inputs, tangents, strict=True))

    def tangent(self, tangents: Tangents) -> Tensor:
        return jvp(self.apply, tuple(self.inputs), self._filled(tangents))[1]

    def curvature(self, tangents: Tangents, num: int) -> Tensor | None:
        ts = self._filled(tangents)
        second = jvp(lambda *xs: jvp(self.apply, xs, ts)[1], tuple(self.inputs), ts)[1]
        return _dot(self.adjoint, second, num)
