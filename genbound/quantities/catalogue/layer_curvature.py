"""``layer_curvature``, measured in :mod:`genbound.quantities.layer_curvature`."""

from __future__ import annotations

from dataclasses import dataclass

from genbound.estimators.curvature_kinds import CALLED, CURVATURES
from genbound.formatting import digits, with_error
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading, Summary


@dataclass(frozen=True)
class LayerCurvatureOptions:
    """Options of ``layer_curvature``."""

    curvature: str = option(
        "hessian", "hessian, ggn (its Gauss-Newton part) or fisher", flag="--curvature", choices=CURVATURES
    )
    exact_outputs: int = option(64, "most output coordinates for which traces are computed exactly")
    num_factors: int = option(16, "random combinations of output coordinates per sample, where there are more")

    def __post_init__(self) -> None:
        check_options(self, num_factors=2)


def _describe(summary: Summary) -> list[str]:
    total, called = summary["total"], CALLED[summary["curvature"]]
    trace = f"trace {with_error(total['trace'], total['trace_sem'])}, " if total["trace"] is not None else ""
    forms = f"form v'Cv {digits(total['value'])}; with the blocks between layers {digits(total['joint'])}"
    return [f"{called} matrix C of the mean loss, sum over the layers' own blocks: {trace}{forms}."]


QUANTITY = Quantity(
    "layer_curvature",
    "v'Cv and Tr C of each layer's own block of the mean loss, for C the Hessian, Gauss-Newton or Fisher matrix",
    later("genbound.quantities.layer_curvature:measure"),
    LayerCurvatureOptions,
    on_request=True,
    gradients=later("genbound.quantities.layer_curvature:forecast"),
    reference="Martens 2020",
    reading=Reading(fall_when_better=("*",), describe=_describe, by_layer=True),
)
