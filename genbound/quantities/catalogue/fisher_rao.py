"""``fisher_rao``, measured in :mod:`genbound.quantities.fisher_rao`."""

from __future__ import annotations

from genbound.quantities.base import Quantity, later

QUANTITY = Quantity(
    "fisher_rao",
    "Fisher-Rao norm of the weights",
    later("genbound.quantities.fisher_rao:measure"),
    gradients=lambda problem, options: 3.0,
    reference="Liang, Poggio, Rakhlin & Stokes 2019",
)
