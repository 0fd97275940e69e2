"""What costs next to nothing: a measure that tells no more of the gap than these is not worth its price."""

from __future__ import annotations

import math
from collections.abc import Callable

from genbound.results.gap import measured
from genbound.results.results import Results


def _of_losses(entry: str) -> Callable[[Results], float]:
    def value(results: Results) -> float:
        found = measured(results, entry)
        return math.nan if found is None else found

    return value


def _margin(results: Results) -> float:
    """The percentile of the training margins, in the unit of the scores, where it was measured."""
    found = results.quantities.get("margin", {}).get("value")
    return math.nan if found is None else found


def _distance(results: Results) -> float:
    """From the start to the fine-tuned weights, over all layers, in the unit of the weights."""
    rows = results.quantities.get("displacement_norm", {}).get("layers", {})
    return math.sqrt(math.fsum(row["value"] ** 2 for row in rows.values())) if rows else math.nan


# Every one has a row of its own; measures are also correlated given those of GIVEN.
RIVALS: dict[str, Callable[[Results], float]] = {
    "training loss": _of_losses("train_loss"),
    "training error": _of_losses("train_error"),
    "margin": _margin,
    "distance": _distance,
}
GIVEN = ("training loss", "distance")
