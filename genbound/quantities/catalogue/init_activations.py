"""``init_activations``, measured in :mod:`genbound.quantities.init_activations`."""

from __future__ import annotations

from genbound.quantities.base import Quantity, later

QUANTITY = Quantity(
    "init_activations",
    "largest root mean square of a coordinate of each layer's input in the pretrained network",
    later("genbound.quantities.init_activations:measure"),
    applies_to=later("genbound.quantities.init_activations:applies_to"),
    over_all=True,
    gradients=lambda problem, options: 0.33 * len(problem.data) / problem.num_samples,
    unit="forward",
    reference="Gouk et al. 2021",
)
