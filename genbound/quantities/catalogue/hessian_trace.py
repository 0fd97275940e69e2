"""``hessian_trace``, measured in :mod:`genbound.quantities.hessian_trace`."""

from __future__ import annotations

from dataclasses import dataclass

from genbound.errors import GenboundError
from genbound.formatting import digits, with_error
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading, Summary


@dataclass(frozen=True)
class HessianTraceOptions:
    """Options of ``hessian_trace``."""

    choice: str = option(
        "size",
        "how the samples are chosen where not all are measured: size (more likely those with the larger gradient of the"
        " loss in the output, each weighted accordingly) or uniform",
        flag="--choice", choices=("size", "uniform"),
    )  # fmt: skip
    error: float = option(
        0.0,
        "wanted error of the total over all samples of the data, draws and choice of samples together, relative to it:"
        " as many samples are measured as it takes, and draws of each as are cheapest; layer_sem and total_sem have a"
        " say only where it takes all samples (0: the samples that --samples says)",
        flag="--error",
    )
    layer_sem: float = option(
        0.07,
        "wanted standard error of each layer, relative to its trace (or to a tenth of its root mean square over the"
        " samples, where they cancel, or to 1 % of the largest layer's)",
    )
    total_sem: float = option(
        0.02,
        "wanted standard error of the total over the draws, relative to it; a quarter of"
        " what the choice of samples leaves is always good enough, of the layers too",
    )
    num_pilot: int = option(4, "probes per sample in the pilot round")
    max_probes: int = option(
        8,
        "cap on the mean number of double backward probes per sample, or as much time in sweeps, for the layers and"
        " again for the total; see small_probes for a small problem",
    )
    least_probes: int = option(128, "first probes of all samples together, at the least: two of each sample or more")
    exact_outputs: int = option(64, "most output coordinates for which the Gauss-Newton part is computed exactly")
    small_probes: int = option(512, "the same cap for a problem so small that this takes less than about half a minute")
    num_factors: int = option(16, "random combinations of output coordinates per sample, where there are more")
    sweeps: str = option(
        "auto",
        "precision of sweeps for the total: half (draws in bfloat16, put right by exact ones, unbiased), full, or auto:"
        " half for large networks where bfloat16 is found to be the faster",
        choices=("auto", "half", "full"),
    )
    exact_products: int = option(
        2**15,
        "the remainder too is computed exactly if that takes no more Hessian products on single samples (fewer in"
        " proportion, in networks of more than 65536 weights)",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.error < 1:
            raise GenboundError(f"error {self.error:g} is no relative error: give a number between 0 and 1, 0.05 say")
        if self.error and self.choice == "uniform":
            raise GenboundError("error needs the samples that it chooses by size: leave choice uniform out")
        check_options(
            self, layer_sem=0, total_sem=0, num_pilot=2, max_probes=1, small_probes=1, least_probes=1, num_factors=2
        )


def _describe(summary: Summary) -> list[str]:
    total = summary["total"]
    choice = f"; ± {digits(total['data_sem'])} from the choice of samples" if total["data_sem"] else ""
    value = with_error(total["value"], total["sem"])
    error = "± sem over the draws" if total["sem"] else "nothing was drawn: exact up to rounding"
    return [f"Hessian trace, all layers: {value} ({error}{choice}){chosen(summary)}."]


def chosen(summary: Summary) -> str:
    """What is said of samples that were chosen by size; nothing of others."""
    if summary.get("choice") != "size":
        return ""
    return (
        f", estimated for all training samples from {summary['total']['num_samples']:,} that were chosen by the size of"
        " their loss's gradient in the output and weighted"
    )


QUANTITY = Quantity(
    "hessian_trace",
    "trace of each layer's Hessian block, exact Gauss-Newton part plus a probed remainder",
    later("genbound.quantities.hessian_trace:measure"),
    HessianTraceOptions,
    requires=("losses",),
    reads_data_of=("losses",),
    lighter=(
        {"exact_products": 0},
        *({"max_probes": most, "small_probes": most, "exact_products": 0} for most in (8, 4, 2)),
        *(
            {"max_probes": 1, "small_probes": 1, "exact_products": 0, "least_probes": least} | factors
            for least in (128, 32)
            for factors in ({}, {"exact_outputs": 0, "num_factors": 8})
        ),
    ),
    no_extra={"exact_products": 0, "small_probes": 1},
    gradients=later("genbound.quantities.hessian_trace:forecast"),
    usual=later("genbound.quantities.hessian_trace:usual"),
    unforeseen=later("genbound.quantities.chosen_samples:unforeseen"),
    reference="Hutchinson 1990; Ju, Li & Zhang 2022",
    reading=Reading(fall_when_better=("*",), describe=_describe, by_layer=True),
)
