"""``max_quadratic_form``, measured in :mod:`genbound.quantities.max_quadratic_form`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from genbound.errors import GenboundError
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Number, Reading, Summary, every_number

CONVENTIONS = ("theorem", "paper-code")
MAXIMA = ("certified", "found")
TOLERANCES = ("sum", "layer")
SPLITS = ("auto", "train", "test")


@dataclass(frozen=True)
class MaxQuadraticFormOptions:
    """Options of ``max_quadratic_form``."""

    tolerance: float = option(
        0.01,
        "width of the certified interval of the sum over the layers of the maxima's roots (which hessian_distance is in"
        " proportion to) relative to its upper end, or of every layer's maximum; see tolerance_of",
        flag="--tolerance",
    )
    tolerance_of: str = option(
        "sum",
        "certified: what is known to the tolerance; sum: of the roots over the layers, of which small layers may stay"
        " wider; layer: every layer's maximum, as always with found",
        choices=TOLERANCES,
    )
    max_products: int = option(
        320, "Hessian products spent on one sample and layer before the interval is left as wide as it is"
    )
    maximum: str = option(
        "certified",
        "certified: an interval that holds the maximum over the measured samples; found: the largest of those that look"
        " most promising among all training samples",
        flag="--maximum",
        choices=MAXIMA,
    )
    num_joint: int = option(
        2,
        "found: products for all layers at once, of a fifth of the samples, that say which are promising; 0: the"
        " Gauss-Newton part and the size of the loss's gradient alone say so",
    )
    num_promising: int = option(40, "found: most promising samples of each layer that get products of their own")
    num_checked: int = option(32, "found: random ones of the others, which say how safe it was to pass them over")
    layer_products: int = option(200, "found: products of a layer beyond the first one of each of these samples")
    exact_outputs: int = option(
        64, "found: most output coordinates of which each has a backward pass over all training samples"
    )
    num_draws: int = option(
        4,
        "found: random combinations of outputs that stand for more of them; 0: samples are promising by the size of"
        " their loss's gradient in the output alone, which takes a forward pass",
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
        check_options(self, max_products=1, paper_batch_size=1, num_promising=1, layer_products=1)
        for name in ("num_checked", "exact_outputs", "num_draws"):
            if getattr(self, name) < 0:
                raise GenboundError(f"{name} {getattr(self, name)} is negative: give 0 or more")
        if self.maximum not in MAXIMA:
            raise GenboundError(f"maximum {self.maximum!r} is unknown: use {' or '.join(MAXIMA)}")
        if self.maximum == "found" and self.convention == "paper-code":
            raise GenboundError("maximum found is of the theorem's convention: paper-code takes the mean of batches")
        if self.convention not in CONVENTIONS:
            raise GenboundError(f"convention {self.convention!r} is unknown: use {' or '.join(CONVENTIONS)}")
        if self.paper_split not in SPLITS:
            raise GenboundError(f"paper_split {self.paper_split!r} is unknown: use {', '.join(SPLITS)}")


# Promising samples, random ones, and further products of a layer: what the largest found may take, the dearest first.
SEARCHES = ((40, 32, 200), (24, 32, 100), (12, 16, 50), (6, 8, 16), (3, 2, 6), (2, 0, 2))


def _found(promising: int, checked: int, products: int, **looked: int) -> dict[str, int | str]:
    searched = {"num_promising": promising, "num_checked": checked, "layer_products": products}
    return {"maximum": "found", **searched, **looked}


# A cheaper look at all samples comes before fewer products: one at the gradients' sizes, where a fifth of the samples
# have a closer one. Sizes alone come last.
SIZES = {"exact_outputs": 0, "num_draws": 0}
LOOKS: tuple[dict[str, int], ...] = ({}, {"exact_outputs": 0, "num_draws": 1}, SIZES, SIZES | {"num_joint": 1})
LIGHTER = (
    *(_found(*s, **looked) for s in SEARCHES for looked in LOOKS),
    *(_found(*s, **SIZES, num_joint=0) for s in SEARCHES[1:]),
)
HOW = ("quantiles", "exceed_at_most")


def _observe(summary: Summary) -> Iterator[Number]:
    """Intervals of the layers; another seed may find a larger sample where the maximum was searched for."""
    for number in every_number(summary, Reading(how=HOW)):
        yield replace(number, extreme=summary.get("maximum") == "found")


def _describe(summary: Summary) -> list[str]:
    if summary.get("maximum") != "found":
        return []
    return [f"v'H+v: {summary['note']}."]


QUANTITY = Quantity(
    "max_quadratic_form",
    "largest v'H+v over the samples for each layer's own block, as a certified interval",
    later("genbound.quantities.max_quadratic_form:measure"),
    MaxQuadraticFormOptions,
    reads_test_data=lambda options: options.convention == "paper-code",
    lighter=LIGHTER,
    gradients=later("genbound.quantities.max_quadratic_form:forecast"),
    usual=later("genbound.quantities.max_quadratic_form:usual"),
    unforeseen=later("genbound.quantities.max_quadratic_form:unforeseen"),
    unit="product",
    reference="Ju, Li & Zhang 2022",
    reading=Reading(
        observe=_observe,
        describe=_describe,
        how=HOW,
        fall_when_better=("*",),
        plots=("layers", "samples"),
        by_layer=True,
    ),
)
