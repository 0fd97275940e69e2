"""Which rule carries the derivatives of an executed operation: the table of operations names it, and here it is made.

A rule that is named serves the usual arguments. Where others move (the exponent of a power, the matrix that a product
is added to), nested derivatives take its place: they are right for any operation that torch can differentiate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genbound.curvature.recording import Call, at
from genbound.curvature.rules import Affine, Elementwise, Joined, LayerNorm, Nested, Product, Rule, Softmax, Sum
from genbound.network.forward_mode import jvp
from genbound.network.operations import of_aten

aten = torch.ops.aten
FIRST = [(0,)]


class Moving:
    """An executed operation as a function of those of its arguments that depend on a layer.

    Attributes:
        func: the operation; of one that writes into its argument the twin that does not.
        places: which these arguments are, see :func:`~genbound.curvature.recording.at`.
        values: what they were.
        args: all arguments, but for ``None`` in those places: whoever keeps them does not hold on to every result of
            the pass.
        given: all arguments, for use at once.
        kwargs: those by name.
        out: the result, or the part of it that is looked at.
    """

    def __init__(self, call: Call):
        self.func, self.kwargs, self.places = call.func, call.kwargs, call.places
        if call.func._schema.is_mutable:
            self.func = getattr(aten, call.func.overloadpacket.__name__.removesuffix("_"))
        self.given, self.out, self._part = call.args, call.result, call.part
        self.values = [at(call.args, place) for place in self.places]
        self.args = [self._without_moving(i, a) for i, a in enumerate(call.args)]

    def _without_moving(self, i: int, argument: object) -> object:
        if isinstance(argument, list | tuple):
            return [None if (i, j) in self.places else part for j, part in enumerate(argument)]
        return None if (i,) in self.places else argument

    def function(self) -> Callable[..., Tensor]:
        """From the moving arguments to the result; it keeps nothing else of them."""
        func, args, kwargs, places, part = self.func, self.args, self.kwargs, self.places, self._part

        def apply(*values: Tensor) -> Tensor:
            given = list(args)
            for place, value in zip(places, values, strict=True):
                if len(place) == 1:
                    given[place[0]] = value
                else:
                    given[place[0]] = list(given[place[0]])
                    given[place[0]][place[1]] = value
            result = func(*given, **kwargs)
            return result if part is None else result[part]

        return apply

    @property
    def single(self) -> bool:
        """One argument moves."""
        return len(self.places) == 1

    @property
    def keeps_shape(self) -> bool:
        """The result has the shape of the only moving argument, which is the first."""
        return self.places == FIRST and self.out.shape == self.values[0].shape


def find_rule(call: Call) -> Rule:
    """The rule of an executed operation some of whose arguments depend on a layer."""
    moving = Moving(call)
    return RULES[of_aten(call.func).sweep](moving) or _nested(moving)


def _nested(op: Moving) -> Rule:
    """Nested derivatives."""
    return Nested(op.function(), op.values)


# -- affine ---------------------------------------------------------------------------------------------------------


def _affine(op: Moving) -> Rule | None:
    """Applied to the tangent."""
    return Affine(op.function()) if op.single else None


def _moves(op: Moving) -> Rule | None:
    """Moves the tangent's entries."""
    return Affine(op.function(), moves=True) if op.single else None


def _scale(op: Moving) -> Rule | None:
    """Scales the tangent's entries."""
    return Affine(op.function(), scales=True) if op.single else None


def _view(op: Moving) -> Rule | None:
    """Reshapes the tangent."""
    # By reshape: it may lie in memory otherwise than what it belongs to.
    shape = op.args[1]
    return Affine(lambda t: t.reshape(shape), moves=True)


def _joined(op: Moving) -> Rule | None:
    """Joins the tangents."""
    func, args, kwargs, axis = op.func, op.args, op.kwargs, [place[1] for place in op.places]
    others = [torch.zeros_like(x) for x in op.given[0]]

    def join(ts: Sequence[Tensor]) -> Tensor:
        for j, t in zip(axis, ts, strict=True):
            others[j] = t
        return func(others, *args[1:], **kwargs)

    return Joined(join, op.values)


def _sum(op: Moving) -> Rule | None:
    """Adds the tangents."""
    factor = op.kwargs.get("alpha", 1) if len(op.args) < 3 else op.args[2]
    factor *= -1 if of_aten(op.func).name == "sub" else 1
    return Sum(op.out.shape, [1 if place == (0,) else factor for place in op.places])


def _masked_fill(op: Moving) -> Rule | None:
    """The tangent vanishes under the mask."""
    mask = op.args[1]
    return Affine(lambda t: t.masked_fill(mask, 0)) if op.places == FIRST else None


def _where(op: Moving) -> Rule | None:
    """The tangent vanishes where the other is taken."""
    if not op.single or op.places == FIRST:
        return None
    here = op.args[0] if op.places == [(1,)] else ~op.args[0]
    return Affine(lambda t: torch.where(here, t, torch.zeros((), dtype=t.dtype, device=t.device)))


def _pad(op: Moving) -> Rule | None:
    """The tangent is padded by zeros."""
    func, margins = op.func, op.args[1]
    return Affine(lambda t: func(t, margins))


def _batch_norm(op: Moving) -> Rule | None:
    """Its diagonal, in evaluation mode."""
    training = op.func.__name__.partition(".")[0] != "_native_batch_norm_legit_no_training" and op.args[5]
    if training or op.places != FIRST:
        return None
    value = op.values[0].detach()
    slope = jvp(op.function(), (value,), (torch.ones_like(value),))[1]
    return Affine(lambda t: slope * t, scales=True)


def _max_pool(op: Moving) -> Rule | None:
    """The tangent where the largest is."""
    if op.places != FIRST:
        return None
    index = op.func(*op.given, **op.kwargs)[1]
    return Affine(lambda t: t.flatten(2).gather(2, index.flatten(2)).view(index.shape))


# -- products -------------------------------------------------------------------------------------------------------


def _product(op: Moving) -> Rule | None:
    """The product rule."""
    if not op.single:
        return Product(op.function(), *op.values)
    return Affine(op.function(), scales=of_aten(op.func).elementwise and op.out.shape == op.values[0].shape)


def _div(op: Moving) -> Rule | None:
    """Applied to the numerator's tangent."""
    if op.places != FIRST or op.kwargs.get("rounding_mode"):
        return None
    return Affine(op.function(), scales=op.keeps_shape)


def _addmm(op: Moving) -> Rule | None:
    """The product alone."""
    return _added_product(op, torch.mm) if op.single else None


def _baddbmm(op: Moving) -> Rule | None:
    """The product rule, or the product alone."""
    return _added_product(op, torch.bmm)


def _added_product(op: Moving, multiply: Callable[[Tensor, Tensor], Tensor]) -> Rule | None:
    if (0,) in op.places or op.kwargs.get("alpha", 1) != 1:
        return None
    if not op.single:
        return Product(multiply, *op.values)
    left, right = op.args[1:3]
    return Affine(lambda t: multiply(t, right) if left is None else multiply(left, t))


def _convolution(op: Moving) -> Rule | None:
    """The convolution without its bias."""
    func, args, kwargs = op.func, op.args, op.kwargs
    return Affine(lambda t: func(t, args[1], None, *args[3:], **kwargs)) if op.places == FIRST else None


# -- bent and curved ------------------------------------------------------------------------------------------------


def _bend(op: Moving) -> Rule | None:
    """Its slope, entry by entry."""
    return Elementwise(op.function(), op.values[0], False) if op.keeps_shape else None


def _smooth(op: Moving) -> Rule | None:
    """Its two derivatives, entry by entry."""
    return Elementwise(op.function(), op.values[0], True) if op.keeps_shape else None


def _softmax(op: Moving) -> Rule | None:
    """Means and variances under its result."""
    return Softmax(op.out, op.args[1]) if op.places == FIRST else None


def _layer_norm(op: Moving) -> Rule | None:
    """Means over the normalised axes."""
    return LayerNorm(op.values[0], len(op.args[1]), op.args[2], op.args[4]) if op.places == FIRST else None


def _glu(op: Moving) -> Rule | None:
    """Nested derivatives of the product that it is."""  # torch has none of glu itself
    axis = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", -1)

    def gate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, axis)
        return a * b.sigmoid()

    return Nested(gate, op.values)


RULES: dict[str, Callable[[Moving], Rule | None]] = {
    "nested": _nested, "affine": _affine, "moves": _moves, "scale": _scale, "view": _view, "joined": _joined,
    "sum": _sum, "masked_fill": _masked_fill, "where": _where, "pad": _pad, "batch_norm": _batch_norm,
    "max_pool": _max_pool, "product": _product, "div": _div, "addmm": _addmm, "baddbmm": _baddbmm,
    "convolution": _convolution, "bend": _bend, "smooth": _smooth, "softmax": _softmax, "layer_norm": _layer_norm,
    "glu": _glu,
}  # fmt: skip
