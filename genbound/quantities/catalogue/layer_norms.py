"""``layer_norms``, measured in :mod:`genbound.quantities.layer_norms`."""

from __future__ import annotations

from genbound.quantities.base import Quantity, later
from genbound.quantities.summary import Reading

QUANTITY = Quantity(
    "layer_norms",
    "Frobenius, MARS and (2,1) norms of each layer's operator, of its initialisation and of the difference",
    later("genbound.quantities.layer_norms:measure"),
    gradients=lambda problem, options: 6.0 / problem.num_samples,
    reference="Gouk et al. 2021; Bartlett et al. 2017",
    reading=Reading(
        fixed=True,
        fall_when_better=("*frobenius", "*.mars*", "*two_one", "*.l1", "*bias_norm", "*bias_vector_norm"),
        of_the_start=("*.init.*", "*.init_*"),
    ),
)
