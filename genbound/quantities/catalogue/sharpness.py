"""``sharpness``, measured in :mod:`genbound.quantities.sharpness`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from genbound.errors import GenboundError
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import check_options, option
from genbound.quantities.summary import Number, Reading, Summary

ROUNDING = 1e-12  # sizes that are nearer to each other are not told apart


@dataclass(frozen=True)
class SharpnessOptions:
    """Options of ``sharpness``."""

    displacement: float = option(0.1, "largest rise of the error")
    tolerance: float = option(0.1, "relative width of the interval that alpha is searched to")
    num_steps: int = option(4, "perturbations that a trial looks at")
    num_samples: int = option(64, "most samples to search on, spread evenly over the measured ones")
    epsilon: float = option(1e-3, "size of the magnitude-aware box where a weight is zero")

    def __post_init__(self) -> None:
        if not 0 < self.displacement < 1:
            raise GenboundError(f"displacement {self.displacement:g} is a rise of the error: 0 < displacement < 1")
        if 0 < self.tolerance < ROUNDING:
            raise GenboundError(f"tolerance {self.tolerance:g} is lost in rounding: give {ROUNDING:g} or more")
        check_options(self, tolerance=0, num_steps=1, num_samples=1, epsilon=0)


def _observe(summary: Summary) -> Iterator[Number]:
    """The brackets that the searches ended with; what else is measured follows from them and from the weights."""
    for key in ("alpha", "magnitude_alpha"):
        if summary.get(key) is not None:
            alpha = summary[key]
            yield Number(key, alpha, 0.0, None, lower=alpha, upper=summary[f"{key}_above"])
    for key in ("norm_displacement", "norm_weights"):
        if summary.get(key) is not None:
            yield Number(key, summary[key])


QUANTITY = Quantity(
    "sharpness",
    "largest box of weight perturbations whose worst one found raises the training error by 0.1 at most, plain and"
    " magnitude-aware",
    later("genbound.quantities.sharpness:measure"),
    SharpnessOptions,
    gradients=later("genbound.quantities.sharpness:forecast"),
    usual=later("genbound.quantities.sharpness:usual"),
    applies_to=later("genbound.quantities.sharpness:applies_to"),
    reference="Jiang et al. 2020",
    reading=Reading(fall_when_better=("norm_*",), observe=_observe),
)
