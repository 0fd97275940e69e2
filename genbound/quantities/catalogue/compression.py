"""``compression``, measured in :mod:`genbound.quantities.compression`."""

from __future__ import annotations

from dataclasses import dataclass

from genbound.errors import GenboundError
from genbound.quantities.base import Quantity, later
from genbound.quantities.measure_options import option
from genbound.quantities.summary import Reading


@dataclass(frozen=True)
class CompressionOptions:
    """Options of ``compression``."""

    zeta: float = option(0.0, "fraction of the samples that each number may leave out")
    num_samples: int = option(32, "most samples to take the extrema over, evenly spaced among those of the problem")
    num_probes: int = option(4, "random signs per sample and later layer that choose the candidates")
    num_refined: int = option(64, "most independent random signs that measure a candidate")
    error: float = option(0.05, "relative standard error at which a candidate has random signs enough")
    candidates: int = option(4, "samples for each layer and number")
    exact: int = option(
        32, "most coordinates of a later layer's output for which the Jacobian's norm is computed exactly"
    )
    noise: float = option(0.1, "norm of the noise relative to the layer's output")
    num_draws: int = option(1, "noise draws per sample and layer; 0 leaves the smoothness out")

    def __post_init__(self) -> None:
        if not 0 <= self.zeta < 1:
            raise GenboundError(f"zeta {self.zeta:g} is a fraction of the samples: 0 <= zeta < 1")
        if min(self.num_samples, self.num_probes, self.candidates) < 1 or self.num_refined < 2 or self.num_draws < 0:
            raise GenboundError("num_samples, num_probes and candidates must be at least 1, num_refined at least 2")
        if not self.error >= 0:
            raise GenboundError(f"error {self.error:g} must not be negative")
        if not self.noise > 0:
            raise GenboundError(f"noise {self.noise:g} must be positive")


QUANTITY = Quantity(
    "compression",
    "layer and interlayer cushions, contraction, smoothness and spread of the Jacobians (compression bound)",
    later("genbound.quantities.compression:measure"),
    CompressionOptions,
    gradients=later("genbound.quantities.compression:forecast"),
    usual=later("genbound.quantities.compression:usual"),
    applies_to=later("genbound.quantities.compression:applies_to"),
    reference="Arora, Ge, Neyshabur & Zhang 2018",
    # The most extreme of a few draws of the noise, and of candidates that random signs choose.
    reading=Reading(extremes=("smoothness", "beta")),
)
