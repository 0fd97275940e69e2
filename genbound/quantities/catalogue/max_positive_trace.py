"""``max_positive_trace``, measured in :mod:`genbound.quantities.max_positive_trace`."""

from __future__ import annotations

from dataclasses import dataclass

from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading


@dataclass(frozen=True)
class MaxPositiveTraceOptions:
    """Options of ``max_positive_trace``."""

    dense_products: int = option(
        5_000, "Hessian products on single samples that a layer may cost before it is estimated"
    )
    candidates: int = option(8, "samples that are looked at in the first round of an estimate")
    finalists: int = option(2, "samples that the second round chooses among")
    num_steps: int = option(40, "most Lanczos steps of each probe of an estimate")
    num_probes: int = option(10, "probes of an estimate")

    def __post_init__(self) -> None:
        check_options(self, candidates=1, finalists=1, num_steps=1, num_probes=2)


QUANTITY = Quantity(
    "max_positive_trace",
    "largest Tr[H+] over the samples for each layer's own block",
    later("genbound.quantities.max_positive_trace:measure"),
    MaxPositiveTraceOptions,
    requires=("hessian_trace",),
    gradients=later("genbound.quantities.max_positive_trace:forecast"),
    reference="Ju, Li & Zhang 2022; Ubaru, Chen & Saad 2017; Meyer et al. 2021",
    # The largest of noisy estimates: which samples become candidates is itself a draw, and moves the value by tens of
    # per cent, which neither the interval nor the sem covers.
    reading=Reading(extremes=("value",), fall_when_better=("*",), by_layer=True),
)
