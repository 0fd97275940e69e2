"""``matrix_norms``, measured in :mod:`genbound.quantities.matrix_norms`."""

from __future__ import annotations

from genbound.quantities.base import Quantity, later
from genbound.quantities.summary import Reading

QUANTITY = Quantity(
    "matrix_norms",
    "norms and stable rank of each weight as it is stored, of its initialisation and of the difference",
    later("genbound.quantities.matrix_norms:measure"),
    needs_data=False,
    gradients=later("genbound.quantities.matrix_norms:forecast"),
    of_weights=True,
    reading=Reading(fixed=True, fall_when_better=("*",), of_the_start=("*.init.*",)),
)
