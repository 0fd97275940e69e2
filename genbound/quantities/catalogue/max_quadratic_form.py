"""``max_quadratic_form``, measured in :mod:`genbound.quantities.max_quadratic_form`."""

from __future__ import annotations

from dataclasses import dataclass

from genbound.errors import GenboundError
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading

CONVENTIONS = ("theorem", "paper-code")
SPLITS = ("auto", "train", "test")


@dataclass(frozen=True)
class MaxQuadraticFormOptions:
    """Options of ``max_quadratic_form``."""

    tolerance: float = option(0.01, "width of the interval relative to its upper end", flag="--tolerance")
    max_products: int = option(
        320, "Hessian products spent on one sample and layer before the interval is left as wide as it is"
    )
    convention: str = option(
        "theorem",
        "of the theorem, or paper-code: what the published scripts compute",
        flag="--convention",
        choices=CONVENTIONS,
    )
    paper_batch_size: int = option(
        8, "samples whose mean loss the published scripts differentiate", flag="--paper-batch-size"
    )

    paper_split: str = option(
        "auto",
        "whose batches paper-code takes; auto: of the test data for images, of the training data otherwise",
        choices=SPLITS,
    )

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise GenboundError(f"tolerance {self.tolerance:g} must lie between 0 and 1")
        check_options(self, max_products=1, paper_batch_size=1)
        if self.convention not in CONVENTIONS:
            raise GenboundError(f"convention {self.convention!r} is unknown: use {' or '.join(CONVENTIONS)}")
        if self.paper_split not in SPLITS:
            raise GenboundError(f"paper_split {self.paper_split!r} is unknown: use {', '.join(SPLITS)}")


QUANTITY = Quantity(
    "max_quadratic_form",
    "largest v'H+v over the samples for each layer's own block, as a certified interval",
    later("genbound.quantities.max_quadratic_form:measure"),
    MaxQuadraticFormOptions,
    reads_test_data=lambda options: options.convention == "paper-code",
    gradients=later("genbound.quantities.max_quadratic_form:forecast"),
    reference="Ju, Li & Zhang 2022",
    reading=Reading(how=("quantiles",), plots=("layers", "samples"), by_layer=True),
)
