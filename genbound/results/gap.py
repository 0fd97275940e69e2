"""What bounds are held against: the measured gap of a run, in the loss and in the 0-1 error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genbound.results.results import Results


@dataclass(frozen=True)
class Unit:
    """Where a run's losses have what belongs to a unit.

    Attributes:
        empirical: entry of the mean over the training samples.
        constant: entry of what the best constant prediction reaches on them.
        gap: entry of the difference between test and training samples.
    """

    empirical: str
    constant: str
    gap: str


UNITS = {
    "loss": Unit("train_loss", "constant_loss", "generalization_gap"),
    "error": Unit("train_error", "constant_error", "error_gap"),
}
REWEIGHTED = Unit("reweighted_train_loss", "reweighted_constant_loss", "reweighted_gap")  # for label noise


def losses(results: Results) -> Mapping[str, Any]:
    """What was measured of the loss and the error; empty if nothing was."""
    return results.quantities.get("losses", {})


def measured(results: Results, entry: str) -> float | None:
    """An entry of a run's losses, in the unit of the loss or as a fraction; ``None`` where it was not measured."""
    return losses(results).get(entry)


def measured_gap(results: Results, unit: str) -> float | None:
    """The generalization gap in ``loss`` or ``error``; ``None`` without test samples."""
    return measured(results, UNITS[unit].gap)


def vacuous_from(results: Results, unit: Unit) -> float | None:
    """The value from which a bound says nothing.

    It is the best constant prediction's loss (or error) less the training one.
    """
    empirical, constant = measured(results, unit.empirical), measured(results, unit.constant)
    return None if empirical is None or constant is None else constant - empirical
