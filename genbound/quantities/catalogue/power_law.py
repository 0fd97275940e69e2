"""``power_law``, measured in :mod:`genbound.quantities.power_law`."""

from __future__ import annotations

from dataclasses import dataclass

from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading


@dataclass(frozen=True)
class PowerLawOptions:
    """Options of ``power_law``."""

    fewest: int = option(10, "eigenvalues that a layer must have, or none is fitted to it")
    largest: int = option(2048, "smaller side of the largest matrix whose spectrum is computed")

    def __post_init__(self) -> None:
        check_options(self, fewest=2, largest=1)


QUANTITY = Quantity(
    "power_law",
    "exponent alpha of the tail of each weight's eigenvalue spectrum",
    later("genbound.quantities.power_law:measure"),
    PowerLawOptions,
    needs_data=False,
    gradients=later("genbound.quantities.power_law:forecast"),
    of_weights=True,
    reference="Martin, Peng & Mahoney 2021",
    reading=Reading(fixed=True, how=("smallest",)),
)
