"""``squared_path_norm``, measured in :mod:`genbound.quantities.squared_path_norm`."""

from __future__ import annotations

from genbound.quantities.base import Quantity, later
from genbound.quantities.summary import Reading

QUANTITY = Quantity(
    "squared_path_norm",
    "squared path norm: the output of the network with squared weights for an input of ones",
    later("genbound.quantities.squared_path_norm:measure"),
    gradients=lambda problem, options: 1.0 / problem.num_samples,
    applies_to=later("genbound.quantities.squared_path_norm:applies_to"),
    reference="Neyshabur, Tomioka & Srebro 2015; Jiang et al. 2020",
    reading=Reading(fixed=True, fall_when_better=("*",)),
)
