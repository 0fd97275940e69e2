"""``noise_stability``, measured in :mod:`genbound.quantities.noise_stability`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from genbound.errors import GenboundError
from genbound.formatting import digits, percent, with_error, yes_no
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Reading, Summary


@dataclass(frozen=True)
class NoiseStabilityOptions:
    """Options of ``noise_stability``."""

    sigmas: tuple[float, ...] = option(
        (0.001, 0.002, 0.005, 0.01, 0.02), "standard deviations of the noise", flag="--sigmas"
    )
    relative_sem: float = option(0.05, "wanted standard error, relative to the value")
    error: float = option(
        0.0,
        "wanted error of every rise over all samples of the data, draws and choice of samples together, relative to it:"
        " as many samples are measured as it takes (0: those of hessian_trace)",
        flag="--error",
    )
    num_pilot: int = option(2, "antithetic pairs of the pilot round")
    max_perturbations: int = option(
        16,
        "cap on the mean number of antithetic pairs per sample (per block of 16, where the weights themselves are"
        " moved); see small_perturbations for a small problem",
    )
    small_perturbations: int = option(
        2**14, "the same cap for a problem so small that this takes less than about half a minute"
    )
    least_pairs: int = option(128, "antithetic pairs of all samples together, at the least; also of the pilot")
    num_shared: int = option(4, "antithetic pairs of the round that all samples share")
    max_shared_samples: int = option(64, "most samples of the shared round")

    def __post_init__(self) -> None:
        if not 0 <= self.error < 1:
            raise GenboundError(f"error {self.error:g} is no relative error: give a number between 0 and 1, 0.05 say")
        check_options(self, relative_sem=0, num_pilot=2, least_pairs=1, max_shared_samples=1, small_perturbations=1)
        if not self.sigmas or any(not (0 < s < float("inf")) for s in self.sigmas):
            raise GenboundError(f"sigmas {list(self.sigmas)} must be positive numbers")
        if list(self.sigmas) != sorted(set(self.sigmas)):
            raise GenboundError(f"sigmas {list(self.sigmas)} must increase, each given once")
        if self.num_shared < 2:
            raise GenboundError(f"num_shared {self.num_shared} must be at least 2: one draw has no spread")


def _lighter(most: int, least: int, **more: Any) -> dict[str, Any]:
    """Fewer pairs of noise: ``most`` a sample, ``least`` in all."""
    return {"max_perturbations": most, "small_perturbations": most, "num_shared": 2, "least_pairs": least} | more


# A noisy pass of few samples through convolutions takes two others: some of them can pay for part of the grid alone.
LIGHTER = (
    *(_lighter(most, least) for most, least in ((4, 128), (2, 128), (1, 128), (1, 32), (1, 16))),
    _lighter(1, 8, max_shared_samples=8),
    _lighter(1, 8, max_shared_samples=4, sigmas=(0.001, 0.005, 0.02)),
)


def _describe(summary: Summary) -> list[str]:
    some = any(row.get("data_sem") for row in summary["sigmas"])  # of all training samples
    head = ["sigma", "noise stability (± sem over the draws)", *["± from the choice of samples"] * some,
            "std over shared draws", "½ sigma² Tr H (± sem over the draws)", "quadratic"]  # fmt: skip
    rows = [
        [
            f"{row['sigma']:g}",
            with_error(row["value"], row["sem"]) if row.get("reliable", True) else "/ heavy tail",
            *([digits(row["data_sem"])] if some else []),
            digits(row["std"]),
            with_error(row["hessian_approximation"], row["hessian_approximation_sem"]),
            _agreement(row),
        ]
        for row in summary["sigmas"]
    ]
    return [tabulate(rows, head, tablefmt="github", disable_numparse=True), "", *_remarks(summary), ""]


def _agreement(row: Mapping[str, Any]) -> str:
    """Whether the rise agrees with the Hessian approximation, in a word."""
    known = row["quadratic_regime"]
    return "not known" if known is None else "kinks" if row.get("kinks") else yes_no(known)


def _remarks(summary: Summary) -> list[str]:
    """What is said below the table."""
    rss, noise = summary["relative_rss"], summary.get("relative_rss_noise")
    if rss is None:
        return ["The loss does not move under this noise."]
    sentence = f"Relative RSS of the Hessian approximation over this grid: {percent(rss)}"
    if noise is not None:
        sentence += f", noise alone {percent(noise)}" + (": all of it may be noise" if rss <= 2 * noise else "")
    remarks = [f"{sentence}."]
    if "num_compared" in summary:
        remarks.append(
            f"Both are compared on the {summary['num_compared']:,} samples whose trace is known: the relative RSS and "
            "whether a rise is quadratic are of these. The rises above have further samples."
        )
    if any(row.get("kinks") for row in summary["sigmas"]):
        remarks.append("Kinks: the rise stays proportional to sigma², but off ½ sigma² Tr H, which does not see them.")
    elif summary["sigmas"][0]["quadratic_regime"] is False:
        remarks.append(
            "The smallest sigma is outside the quadratic regime already. A smaller one may be inside. It need not be "
            "if the network has kinks (ReLU, max pooling): noise crosses them, and Tr H does not see them."
        )
    if not all(row.get("reliable", True) for row in summary["sigmas"]):
        remarks.append("Heavy tail: rare draws rule the mean, and it is not known; more draws may tell.")
    return remarks


QUANTITY = Quantity(
    "noise_stability",
    "rise of the loss under Gaussian weight noise over a grid of sigmas, beside its Hessian approximation",
    later("genbound.quantities.noise_stability:measure"),
    NoiseStabilityOptions,
    requires=("losses", "hessian_trace"),
    reads_data_of=("losses",),
    lighter=LIGHTER,
    no_extra={"small_perturbations": 1},
    gradients=later("genbound.quantities.noise_forecast:forecast"),
    usual=later("genbound.quantities.noise_forecast:usual"),
    unforeseen=later("genbound.quantities.chosen_samples:unforeseen"),
    unit="noise",
    reference="Ju, Li & Zhang 2022",
    reading=Reading(
        # Copies of the trace or computed from it; the spread over a handful of shared draws has no error bar of its
        # own.
        how=(
            "hessian_approximation",
            "relative_rss",
            "relative_rss_noise",
            "tail_shape",
            "leaves_quadratic_regime_at",
            "control_slope",
            "std",
        ),  # fmt: skip
        fall_when_better=("sigma=*",),
        describe=_describe,
        plots=("noise_stability",),
    ),
)
