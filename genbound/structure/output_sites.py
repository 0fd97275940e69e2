r"""Where a layer's output lies in a forward pass.

A *site* is the output of a layer as an affine map: what the operation with the weight returns, or what the
evaluation-mode BatchNorm right behind it returns, because that BatchNorm is part of the affine map (it is folded).
Sites are read from the executed graph, so that they need no module names, and are put in the order of execution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from genbound.network.operations import of_node
from genbound.network.tape import Tape
from genbound.network.weight_uses import ConvolutionUse, LinearUse


@dataclass
class Site:
    """The output ``z`` of one layer, for the N samples of a pass.

    Attributes:
        name: the layer.
        use: how its weight acts.
        edge: place of the output in the graph, behind a folded BatchNorm.
        folded: whether there is one.
        order: number of the operation in the order of execution.
        scale: what the folded BatchNorm multiplies every coordinate of one sample's output by, ``[1, ...]``, or
            ``None``.
    """

    name: str
    use: LinearUse | ConvolutionUse
    edge: GradientEdge
    folded: bool
    order: int
    scale: Tensor | None

    def linear_part(self, weight: Tensor) -> Tensor:
        """A weight's linear map applied to the layer's inputs, no bias and no mean: in the shape and unit of z."""
        z = self.use.perturb(weight)
        return z if self.scale is None else z * self.scale

    def operator_square(self, weight: Tensor) -> float:
        """Squared Frobenius norm of a weight's linear map on one sample's input, the unrolled matrix of a convolution.

        The entries' squares add up to what the map with squared entries makes of an input of ones. Unit: that of a
        weight squared.
        """
        ones = torch.ones_like(self.use.inputs[:1])
        alone = {"inputs": ones, "num": 1} if isinstance(self.use, ConvolutionUse) else {"inputs": ones}
        use = replace(self.use, **alone)
        squares = use.perturb(weight.double().square().to(weight.dtype))
        return float((squares if self.scale is None else squares * self.scale.square()).double().sum())

    def pixels(self, z: Tensor) -> Tensor:
        """Sum over the channels of the squares of a tensor in the shape of z, ``[N, positions]``."""
        if isinstance(self.use, LinearUse):
            return self.use.per_position(z).square().sum(-1)
        return z.flatten(2).square().sum(1)


def find_sites(tape: Tape) -> list[Site]:
    """The sites of a tape's layers in the order of execution; layers without a use are left out."""
    sites = []
    for name in tape.layers:
        for use in tape.uses[name]:
            node, scale, folded = use.edge.node, None, False
            consumers = tape.graph.consumers[node]
            if len(consumers) == 1 and consumers[0][1] == 0 and of_node(consumers[0][0]).name == "batch_norm":
                folded, edge = True, GradientEdge(consumers[0][0], 0)
                ones = torch.ones_like(use.perturb(tape.weights[name].detach()))
                # BatchNorm in evaluation mode is diagonal: its derivative along ones is its scale.
                scale = torch.autograd.grad([edge], [use.edge], [ones], retain_graph=True)[0][:1].detach()
            else:
                edge = use.edge
            sites.append(Site(name, use, edge, folded, edge.node._sequence_nr(), scale))
    return sorted(sites, key=lambda site: site.order)


def has_attention(tape: Tape) -> bool:
    """A softmax whose result is multiplied by other activations."""
    names = {of_node(node).name for node in tape.graph.order}
    return "attention" in names or bool(names & {"softmax", "safe_softmax"} and names & {"bmm", "baddbmm"})
