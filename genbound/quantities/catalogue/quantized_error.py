"""``quantized_error``, measured in :mod:`genbound.quantities.quantized_error`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from genbound.errors import GenboundError
from genbound.formatting import digits, percent
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading, Summary


@dataclass(frozen=True)
class QuantizedErrorOptions:
    """Options of ``quantized_error``."""

    taus: tuple[float, ...] = option(
        (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 10.0),
        "weights of the length against the rise of the loss to try; more of it, shorter descriptions",
    )
    num_curvature: int = option(128, "most samples that the curvature of a tensor is measured on")
    most_full: int = option(2048, "coordinates that moved, above which directions in a tensor are not told apart")
    num_full: int = option(8192, "most samples that the whole curvature is measured on")
    num_pilot: int = option(4096, "most samples on which weights are tried; all weights are on the first 64 of them")

    def __post_init__(self) -> None:
        check_options(self, num_curvature=1, most_full=0, num_full=1, num_pilot=1)
        if not self.taus or min(self.taus) <= 0:
            raise GenboundError("taus must be positive numbers")


def _describe(summary: Summary) -> list[str]:
    if summary.get("reason"):
        return [f"Quantised network: /, {summary['reason']}."]
    forms = Counter(row["form"] for row in summary["groups"].values())
    told = ", ".join(f"{num} {form}" for form, num in forms.most_common())
    said = "/" if summary["error"] is None else percent(summary["error"])
    return [
        f"Quantised network: error {said}, {digits(summary['nats'])} nats for {summary['num_groups']} tensors ({told})."
    ]


QUANTITY = Quantity(
    "quantized_error",
    "training error of the network with what moved rounded to a grid, and the length of its description",
    later("genbound.quantities.quantized_error:measure"),
    QuantizedErrorOptions,
    over_all=True,
    lighter=({"num_pilot": 256},),
    gradients=later("genbound.quantities.quantized_error:forecast"),
    usual=later("genbound.quantities.quantized_error:usual"),
    applies_to=later("genbound.quantities.quantized_error:applies_to"),
    readings=500,  # the codes of every tensor for every scale
    reference="Langford 2005; Lotfi et al. 2022",
    reading=Reading(
        fixed=True,
        describe=_describe,
        how=("groups", "tau", "loss_range"),
        fall_when_better=("error", "loss", "nats"),
        plots=("certificate",),
    ),
)
