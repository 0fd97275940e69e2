"""``hessian_spectrum``, measured in :mod:`genbound.quantities.hessian_spectrum`."""

from __future__ import annotations

from dataclasses import dataclass

from genbound.estimators.curvature_kinds import CALLED, CURVATURES
from genbound.formatting import digits
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading, Summary

SCOPES = ("both", "layers", "total")


@dataclass(frozen=True)
class HessianSpectrumOptions:
    """Options of ``hessian_spectrum``."""

    num_probes: int = option(3, "random start vectors for each matrix")
    num_steps: int = option(24, "products with each of them")
    scope: str = option("both", "each layer's own block, the total of all layers, or both", choices=SCOPES)
    curvature: str = option(
        "hessian", "hessian, ggn (its Gauss-Newton part) or fisher", flag="--curvature", choices=CURVATURES
    )

    def __post_init__(self) -> None:
        check_options(self, num_probes=2, num_steps=2)


def _describe(summary: Summary) -> list[str]:
    called, lines = CALLED[summary["curvature"]], []
    if summary["total"] is not None:
        row = summary["total"]
        lines.append(
            f"{called} spectrum, all layers: largest eigenvalue {_range(row)}, smallest {_range(row['smallest'])}."
        )
    if summary["layers"]:
        name, row = max(summary["layers"].items(), key=lambda item: item[1]["value"])
        lines.append(f"{called} spectrum, layers: the largest eigenvalue of a block is {_range(row)}, of {name}.")
    return [" ".join(lines)]


def _range(row: Summary) -> str:
    return f"{digits(row['value'])} (in [{digits(row['lower'])}, {digits(row['upper'])}])"


QUANTITY = Quantity(
    "hessian_spectrum",
    "ends and density of the spectrum of each layer's block of the mean loss, and of all layers'",
    later("genbound.quantities.hessian_spectrum:measure"),
    HessianSpectrumOptions,
    on_request=True,
    gradients=later("genbound.quantities.hessian_spectrum:forecast"),
    reference="Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019",
    reading=Reading(
        describe=_describe, how=("dimension", "failure"), plots=("spectrum", "largest_eigenvalues"), by_layer=True
    ),
)
