"""What one row of the table of operations says, and the words that it says it in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What an operation's result is in the operands that carry a gradient, jointly.

    The later kinds hold the earlier ones. A product is linear in each of two operands; where only one of them depends
    on something, it is linear in that.
    """

    ROUTE = "route"  # every entry is one of an operand's entries, or a constant
    LINEAR = "linear"  # affine
    PIECEWISE = "piecewise linear"
    PRODUCT = "product"
    CURVED = "curved"


@dataclass(frozen=True)
class No:
    """A reader has no answer for the operation, and why."""

    reason: str


@dataclass(frozen=True)
class Operation:
    """One operation that torch executes, under all of its names, and what each reader of a pass makes of it.

    Attributes:
        name: how the table calls it.
        nodes: in autograd's record, ``Relu`` for ``ReluBackward0``.
        aten: below autograd, without the underscore of those that write into their arguments.
        functions: as networks call it, without underscores around it.
        kind: see :class:`Kind`.
        elementwise: an entry of the result is a function of the operands' entries at that place (they may be repeated
            to fit).
        meets: of a product, the operands that are multiplied; the others are added. Of a quotient, the divisor twice.
        lipschitz: in the operand that depends on the input: the constant in the Euclidean and in the sup norm (one
            number: in both), or the name of the function of the executed operation that tells it
            (:mod:`genbound.structure.constants`).
        homogeneous: f(c x) = c f(x) for c > 0; ``None``: that function tells.
        keeps_zero: f(0) = 0; ``None``: that function tells.
        branches: several operands may depend on the input, with the constants above in each while the others are held,
            so that the operation counts as their sum; the text is the note about it.
        label: of an activation function, how results name it.
        sweep: name of the rule that carries its derivatives (:mod:`genbound.curvature.rule_of`); ``constant``: none.
        paths: what becomes of a sum over paths (:mod:`genbound.structure.path_sums`).
    """

    name: str
    kind: Kind
    nodes: tuple[str, ...] = ()
    aten: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    elementwise: bool = False
    meets: tuple[int, int] | None = None
    lipschitz: tuple[float, float] | str | No = No("not in the table of operations")
    homogeneous: bool | None = True
    keeps_zero: bool | None = True
    branches: str | None = None
    label: str = ""
    sweep: str | No = "nested"
    paths: str | No = No("not in the table of operations")

    @property
    def flat(self) -> bool:
        """Its second derivative vanishes wherever it exists."""
        return self.kind in (Kind.ROUTE, Kind.LINEAR, Kind.PIECEWISE)

    @property
    def watched(self) -> bool:
        """An activation function that acts entry by entry: its contraction is measured on the data."""
        return self.elementwise and bool(self.label)

    @property
    def joins(self) -> bool:
        """It adds its operands or puts them beside each other: a table of vectors ends in it."""
        return self.branches is not None and self.kind in (Kind.ROUTE, Kind.LINEAR)
