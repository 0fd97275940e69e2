"""``losses``, measured in :mod:`genbound.quantities.losses`."""

from __future__ import annotations

from genbound.quantities.base import Quantity, later

QUANTITY = Quantity(
    "losses",
    "training and test loss and error, and the generalization gap",
    later("genbound.quantities.losses:measure"),
    reads_test_data=True,
    gradients=lambda problem, options: 0.33 * len(problem.data) / problem.num_samples,
)
