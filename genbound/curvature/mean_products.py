r"""Products with the curvature of the mean loss over all measured samples, cross-layer blocks included.

.. math:: C = \frac1N \sum_x C(x), \qquad x \text{ over the measured samples}

in the weights of some layers, one after another, for any C of :mod:`genbound.estimators.curvature_kinds`. Nothing is
drawn.

Cost:
    For each run of ``batch_size`` samples a forward and a backward pass on the graph, and for each vector a backward
    pass through it (two for ``ggn`` and ``fisher``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genbound.curvature.fisher import check_likelihood, fisher_share
from genbound.estimators.curvature_kinds import check_curvature
from genbound.network.finite_losses import check_finite

if TYPE_CHECKING:
    from genbound.network.network import Network


class MeanCurvature:
    """The curvature of the mean loss in some weights, as products with vectors.

    Args:
        network: whose measured samples.
        names: the weights, in this order.
        curvature: one of :data:`~genbound.estimators.curvature_kinds.CURVATURES`.

    Attributes:
        places: name -> where its entries lie in a vector, in the order of the stored weight.
        dimension: d, the length of a vector.
    """

    def __init__(self, network: Network, names: Sequence[str], curvature: str = "hessian"):
        self.network, self.curvature = network, check_curvature(curvature)
        if curvature == "fisher":
            check_likelihood(network.loss)
        self.places: dict[str, slice] = {}
        self.dimension = 0
        for name in names:
            start, self.dimension = self.dimension, self.dimension + network.params[name].numel()
            self.places[name] = slice(start, self.dimension)

    def flatten(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Weights, ``name -> [*shape]``, as a vector ``[d]`` on the network's device."""
        return torch.cat([weights[name].detach().flatten().to(self.network.device) for name in self.places])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector ``[d]`` as weights, ``name -> [*shape]``."""
        return {name: vector[place].view_as(self.network.params[name]) for name, place in self.places.items()}

    def products(self, vectors: Tensor) -> Tensor:
        """``C v`` of every row.

        Args:
            vectors: ``[K, d]``, in the weights' unit.

        Returns:
            ``[K, d]`` in float64, in the loss's unit by the weights'.
        """
        network = self.network
        moved = vectors.to(device=network.device, dtype=network.dtype)
        devices = [network.params[name].device for name in self.places]
        directions = [
            [v.to(device) for v, device in zip(self.unflatten(row).values(), devices, strict=True)] for row in moved
        ]
        total = torch.zeros(moved.shape, dtype=torch.float64, device=network.device)
        for positions in network.batches(range(network.num_samples)):
            for row, products in zip(total, self._batch(positions, directions), strict=True):
                row += torch.cat([product.flatten().to(row.device) for product in products])
        return total / network.num_samples

    def _batch(self, positions: Sequence[int], directions: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        """The sum over the samples of a batch, for each direction of all the weights."""
        network, batch = self.network, self.network.batch(positions)
        weights = {name: network.params[name].detach().requires_grad_() for name in self.places}
        leaves = list(weights.values())
        with torch.enable_grad():
            outputs = network.forward({**network.params, **weights}, batch.inputs)
            losses = network.loss.per_sample(outputs, batch.targets)
        check_finite(losses, batch.indices, network.data.spec)
        if self.curvature == "hessian":
            return _hessian_products(losses.sum(), leaves, directions)
        at = outputs.detach().requires_grad_()
        with torch.enable_grad():
            losses = network.loss.per_sample(at, batch.targets)
        if self.curvature == "fisher":
            losses = losses * fisher_share(network.loss, at.detach(), batch.targets)
        return _gauss_newton_products(losses.sum(), at, outputs, leaves, directions)


def _hessian_products(
    loss: Tensor, leaves: Sequence[Tensor], directions: Sequence[Sequence[Tensor]]
) -> Iterator[list[Tensor]]:
    gradients = _derivative([loss], leaves, [None], create_graph=True)
    for direction in directions:
        yield _derivative(gradients, leaves, direction)


def _gauss_newton_products(
    loss: Tensor, at: Tensor, outputs: Tensor, leaves: Sequence[Tensor], directions: Sequence[Sequence[Tensor]]
) -> Iterator[list[Tensor]]:
    """With ``u = J v``: ``J^T`` of the derivative along u of the loss's gradient at the outputs."""
    probe = torch.zeros_like(outputs, requires_grad=True)
    pulled = _derivative([outputs], leaves, [probe], create_graph=True)
    gradient = _derivative([loss], [at], [None], create_graph=True)
    for direction in directions:
        (u,) = _derivative(pulled, [probe], direction)  # J^T is linear: its derivative along v is J v
        yield _derivative([outputs], leaves, _derivative(gradient, [at], [u]))


def _derivative(
    values: Sequence[Tensor], at: Sequence[Tensor], along: Sequence[Tensor | None], create_graph: bool = False
) -> list[Tensor]:
    """Gradient of ``sum <values, along>``; zero where there is none."""
    pairs = [(value, a) for value, a in zip(values, along, strict=True) if value.requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in at]
    found = torch.autograd.grad(
        [value for value, _ in pairs], at, [a for _, a in pairs], retain_graph=True, create_graph=create_graph,
        allow_unused=True,
    )  # fmt: skip
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(at, found, strict=True)]
