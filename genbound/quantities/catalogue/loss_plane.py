"""``loss_plane``, measured in :mod:`genbound.quantities.loss_plane`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from genbound.errors import GenboundError
from genbound.quantities.base import Quantity, later
from genbound.quantities.catalogue.loss_path import MOVED
from genbound.quantities.measure_options import option
from genbound.quantities.summary import Reading


@dataclass(frozen=True)
class LossPlaneOptions:
    """Options of ``loss_plane``."""

    along: tuple[float, ...] = option(
        tuple(i / 8 for i in range(-2, 13)), "places t along the displacement; 0 and 1 always are"
    )
    across: tuple[float, ...] = option(
        tuple(i / 8 for i in range(-4, 5)), "places along the random direction, in norms of the filters; 0 always is"
    )
    moves: str = option(
        "all", "which weights the displacement moves: all, or the layers (the others stay as fine-tuned)", choices=MOVED
    )

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) for x in (*self.along, *self.across)):
            raise GenboundError("along and across must be finite numbers")


QUANTITY = Quantity(
    "loss_plane",
    "loss on a plane: the displacement and a random direction with the filters' norms",
    later("genbound.quantities.loss_plane:measure"),
    LossPlaneOptions,
    on_request=True,
    gradients=later("genbound.quantities.loss_plane:forecast"),
    reference="Li et al. 2018",
    # A picture along one random direction: another seed's is another one, and none of its numbers is compared.
    reading=Reading(observe=lambda summary: (), plots=("loss_plane",)),
)
