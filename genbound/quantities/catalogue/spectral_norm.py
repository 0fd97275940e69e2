"""``spectral_norm``, measured in :mod:`genbound.quantities.spectral_norm`."""

from __future__ import annotations

from genbound.quantities.base import Quantity, later
from genbound.quantities.summary import Reading

QUANTITY = Quantity(
    "spectral_norm",
    "operator 2-norm of each layer, of its initialisation and of the difference, within 1 %",
    later("genbound.quantities.spectral_norm:measure"),
    gradients=later("genbound.quantities.spectral_norm:forecast"),
    of_weights=True,
    reference="Kuczynski & Wozniakowski 1992",
    reading=Reading(fixed=True, how=("failure_probability",), fall_when_better=("*",), of_the_start=("*.init",)),
)
