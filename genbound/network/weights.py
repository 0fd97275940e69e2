"""Two sets of weights without a network: what can be said of weights alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from genbound.errors import GenboundError
from genbound.network.displacement import Displacement
from genbound.network.layers import Layer
from genbound.version import __version__


class WeightProblem:
    """Two sets of weights without a network: what can be said of weights alone can be measured."""

    data = test_data = None
    num_samples = num_data = 0
    head: tuple[str, ...] = ()

    def __init__(
        self, params: Mapping[str, Tensor], init: Mapping[str, Tensor], reason: str, provenance=None, factors=None
    ):
        self.reason, self.provenance = reason, dict(provenance or {})
        self.params = {name: p.detach() for name, p in params.items() if p.is_floating_point()}
        self.init = {name: init[name].detach() for name in self.params}
        self.layers = tuple(
            Layer(name, "weight", tuple(p.shape), 0, False, "unknown", False, True)
            for name, p in self.params.items()
            if p.dim() >= 2
        )
        if not self.layers:
            raise GenboundError(
                "the checkpoint has no weight with two or more dimensions: there is no layer to measure"
            )
        known, names = dict(factors or {}), [layer.name for layer in self.layers]
        self.displacement = Displacement(
            {name: self.params[name].double() - self.init[name].double() for name in names if name not in known},
            {name: tuple(f.double() for f in known[name]) for name in names if name in known},
        )

    def digest(self, test_data: bool = False) -> str:
        state = hashlib.sha256(__version__.encode())
        for group in (self.params, self.init):
            for name, tensor in sorted(group.items()):
                state.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
        return state.hexdigest()
