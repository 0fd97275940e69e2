"""What autograd's record of a forward pass says of the layers: how each acts, and where the output is curved in it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from genbound.network.applied_weights import find_uses
from genbound.network.graph import Graph
from genbound.network.weight_uses import Use


class ReadPass:
    """A forward pass of N samples, read from the record of its outputs.

    No number is looked at, so that tensors without any will do (:mod:`genbound.network.layers_by_shape`).

    Args:
        outputs: of the network, ``[N, ...]``, on the graph.
        weights: layer -> the weight that the pass was run with, a leaf of the graph.
        samples_first: the layers, each with the order of the rows of the operations that use it: True sample by sample,
            False position by position.
        num: N.
        convex: the loss is convex in the output.

    Attributes:
        outputs, weights: as given.
        layers: their names.
        uses: layer -> how the weight acts (empty where it does not).
        graph: the operations of the record, none where no layer acts.
        curved_by: layer -> first executed operation that makes the output curved in it; the others are not named.
        piecewise_linear: layers that the output is piecewise linear in: their block is its Gauss-Newton part.
        positive_semidefinite: the same layers if the loss is convex in the output.
    """

    def __init__(
        self, outputs: Tensor, weights: dict[str, Tensor], samples_first: Mapping[str, bool], num: int, convex: bool
    ):
        self.outputs, self.weights, self.layers, self._num = outputs, weights, list(samples_first), num
        self.graph = Graph(outputs, weights)
        self.curved_by = self.graph.curved_by
        self.uses = {name: self.uses_in_order(name, order) for name, order in samples_first.items()}
        self.piecewise_linear = frozenset(self.layers) - frozenset(self.curved_by)
        self.positive_semidefinite = self.piecewise_linear if convex else frozenset()

    def __len__(self) -> int:
        return self._num

    def uses_in_order(self, name: str, samples_first: bool) -> list[Use]:
        """How a layer's weight acts, whatever the order of its operations' rows is: the same places in the record.

        Args:
            name: the layer.
            samples_first: the rows are in order sample by sample, otherwise position by position.
        """
        return find_uses(self.graph, name, self.weights[name], len(self), samples_first)
