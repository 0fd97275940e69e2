"""``gibbs_error``, measured in :mod:`genbound.quantities.gibbs_error`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from genbound.errors import GenboundError
from genbound.formatting import digits, percent
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Number, Reading, Summary, every_number

COVARIANCES = ("full", "tensor")
HOW = ("groups", "tau", "kl", "delta", "log_union", "exact", "loss_range")


@dataclass(frozen=True)
class GibbsErrorOptions:
    """Options of ``gibbs_error``."""

    covariance: str = option(
        "full",
        "of the noise: one variance a tensor; or that of each tensor's curvature, of a large one on its input side",
        flag="--covariance",
        choices=COVARIANCES,
    )
    most_full: int = option(2048, "coordinates of a tensor, above which the noise on each output is alike")
    num_curvature: int = option(8192, "most samples that the curvature is measured on")
    taus: tuple[float, ...] = option(
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        "weights of the divergence to try; more of it, more noise",
    )
    num_pilot: int = option(512, "samples on which they are tried")
    cost: float = option(0.01, "what the Monte Carlo error may add to the certificate, if that takes no more passes")
    max_passes: int = option(20, "most draws a sample")
    most_normals: float = option(1e10, "random numbers that one pass may take; above, the quantity is left out")

    def __post_init__(self) -> None:
        check_options(self, most_full=0, num_curvature=1, num_pilot=1, cost=0, max_passes=1, most_normals=0)
        if not self.taus or min(self.taus) <= 0:
            raise GenboundError("taus must be positive numbers")


def _observe(summary: Summary) -> Iterator[Number]:
    """A pilot chooses the noise: that of another seed may be of another size, which no error bar of the mean knows."""
    return (replace(number, extreme=True) for number in every_number(summary, Reading(how=HOW)))


def _describe(summary: Summary) -> list[str]:
    if summary.get("reason"):
        return [f"Gibbs error: /, {summary['reason']}."]
    how = "exact" if summary["exact"] else f"{summary['num_trials']:,} independent trials"
    said = f"Gibbs error of noise on {summary['num_groups']} tensors: "
    said += "/" if summary["error"] is None else f"{percent(summary['error'])} ({how})"
    return [f"{said}; KL {digits(summary['kl'])} nats at tau = {summary['tau']:g}."]


QUANTITY = Quantity(
    "gibbs_error",
    "mean training error of the network with Gaussian noise on all that moved, and the noise's KL from the prior",
    later("genbound.quantities.gibbs_error:measure"),
    GibbsErrorOptions,
    over_all=True,
    lighter=(
        {"num_curvature": 512},
        {"num_curvature": 512, "max_passes": 2},
        {"num_curvature": 128, "max_passes": 1},
        {"num_curvature": 128, "max_passes": 1, "num_pilot": 128},
        {"num_curvature": 128, "max_passes": 1, "num_pilot": 128, "covariance": "tensor"},
    ),
    no_extra={"num_curvature": 128, "max_passes": 1, "num_pilot": 128, "covariance": "tensor"},
    gradients=later("genbound.quantities.gibbs_error:forecast"),
    applies_to=later("genbound.quantities.gibbs_error:applies_to"),
    readings=2500,  # decompositions of the curvature of every tensor
    reference="Langford & Caruana 2002; Perez-Ortiz et al. 2021",
    reading=Reading(
        describe=_describe,
        observe=_observe,
        fall_when_better=("error", "loss"),
        plots=("certificate",),
    ),
)
