"""``structure``, measured in :mod:`genbound.quantities.structure`."""

from __future__ import annotations

from genbound.quantities.base import Quantity, later
from genbound.quantities.summary import Reading

QUANTITY = Quantity(
    "structure",
    "how the layers are composed: series, sums of branches, and the Lipschitz constants in between",
    later("genbound.quantities.structure:measure"),
    gradients=lambda problem, options: 0.7 / problem.num_samples,
    reading=Reading(fixed=True, how=("tree",)),
)
