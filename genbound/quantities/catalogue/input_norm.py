"""``input_norm``, measured in :mod:`genbound.quantities.input_norm`."""

from __future__ import annotations

from genbound.quantities.base import Quantity, later
from genbound.quantities.summary import Reading

QUANTITY = Quantity(
    "input_norm",
    "largest and mean norms of the inputs, and the largest norm of the output",
    later("genbound.quantities.input_norm:measure"),
    applies_to=later("genbound.quantities.input_norm:applies_to"),
    over_all=True,
    gradients=lambda problem, options: 0.33 * len(problem.data) / problem.num_samples,
    unit="forward",
    reading=Reading(fixed=True),
)
