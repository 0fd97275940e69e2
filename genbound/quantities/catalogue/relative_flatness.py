"""``relative_flatness``, measured in :mod:`genbound.quantities.relative_flatness`."""

from __future__ import annotations

from dataclasses import dataclass

from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading


@dataclass(frozen=True)
class RelativeFlatnessOptions:
    """Options of ``relative_flatness``."""

    exact_outputs: int = option(64, "most output coordinates for which it is computed")

    def __post_init__(self) -> None:
        check_options(self, exact_outputs=1)


QUANTITY = Quantity(
    "relative_flatness",
    "trace of each piecewise linear layer's Hessian, weighted by the products of its neurons' weights",
    later("genbound.quantities.relative_flatness:measure"),
    RelativeFlatnessOptions,
    gradients=later("genbound.quantities.relative_flatness:forecast"),
    reference="Petzka et al. 2021",
    reading=Reading(fall_when_better=("*",)),
)
