"""``flatness``, measured in :mod:`genbound.quantities.flatness`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from genbound.errors import GenboundError
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import option
from genbound.quantities.summary import Number, Reading, Summary


@dataclass(frozen=True)
class FlatnessOptions:
    """Options of ``flatness``."""

    displacement: float = option(0.1, "largest mean rise of the error")
    tolerance: float = option(0.05, "relative error of sigma that its search may leave, beside that of the draws")
    num_draws: int = option(12, "draws of the noise, each on the next group of samples")
    num_coarse: int = option(4, "draws while the rise is more than a factor of 1.5 off; the first ones of the same")
    epsilon: float = option(1e-3, "floor of the magnitude-aware standard deviation")

    def __post_init__(self) -> None:
        if not 0 < self.displacement < 1:
            raise GenboundError(f"displacement {self.displacement:g} is a rise of the error: 0 < displacement < 1")
        if not self.tolerance > 0 or not self.epsilon > 0:
            raise GenboundError("tolerance and epsilon must be positive")
        if not 2 <= self.num_coarse <= self.num_draws:
            raise GenboundError("2 <= num_coarse <= num_draws is needed: a mean of one draw has no standard error")


# Entry -> the sigma that it is, or is computed from, and the standard error of the rise at that sigma.
SIGMAS = {
    "sigma": ("sigma", "sem_error"),
    "magnitude_sigma": ("magnitude_sigma", "magnitude_sem_error"),
    "magnitude_sigma_origin": ("magnitude_sigma_origin", "magnitude_origin_sem_error"),
    "log_sum_init": ("magnitude_sigma", "magnitude_sem_error"),
    "log_sum_origin": ("magnitude_sigma_origin", "magnitude_origin_sem_error"),
    "log_sum_published": ("magnitude_sigma_origin", "magnitude_origin_sem_error"),
    "log_sum_published_origin": ("magnitude_sigma_origin", "magnitude_origin_sem_error"),
}


def _observe(summary: Summary) -> Iterator[Number]:
    for key, (sigma, sem) in SIGMAS.items():
        if summary.get(key) is not None:
            yield Number(key, summary[key], abs(summary[key]) * _relative_sem(summary, sigma, sem), None)
    for key in ("norm_displacement", "norm_weights"):
        if summary.get(key) is not None:
            yield Number(key, summary[key])


def _relative_sem(summary: Summary, sigma: str, sem: str) -> float:
    """Relative error of a sigma found by search.

    It has two parts: the error of the rise there, which is taken to grow in proportion to sigma at least, and what the
    search left.
    """
    if summary.get(sigma) is None or summary.get(sem) is None:
        return 0.0
    return math.hypot(summary[sem] / summary["displacement"], summary.get("tolerance", FlatnessOptions.tolerance))


QUANTITY = Quantity(
    "flatness",
    "largest weight noise that raises the training error by 0.1 at most, plain and magnitude-aware",
    later("genbound.quantities.flatness:measure"),
    FlatnessOptions,
    gradients=later("genbound.quantities.flatness:forecast"),
    usual=later("genbound.quantities.flatness:usual"),
    unit="forward",
    applies_to=later("genbound.quantities.flatness:applies_to"),
    reference="Jiang et al. 2020",
    reading=Reading(fall_when_better=("norm_*",), observe=_observe),
)
