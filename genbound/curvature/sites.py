r"""Where a layer's output lies in a forward pass, and derivatives from one layer's output to another's.

A *site* is the output of a layer as an affine map: what the operation with the weight returns, or what the evaluation-mode
BatchNorm right behind it returns, because that BatchNorm is part of the affine map (it is folded). Sites are read from
the executed graph, so that they need no module names, and are put in the order of execution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.curvature.graph import NORMALIZATIONS, operation
from genbound.curvature.uses import ConvolutionUse, LinearUse

LINEAR = frozenset({"convolution", "addmm", "mm"})  # the operations that a use is read from
BATCH_NORM = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})
ACTIVATIONS = frozenset(
    """relu leaky_relu _prelu_kernel gelu silu elu celu hardtanh hardswish hardsigmoid sigmoid tanh softplus mish threshold
    clamp clamp_min""".split()
)


@dataclass
class Site:
    """The output ``z`` of one layer.

    Attributes:
        name: the layer.
        use: how its weight acts.
        edge: place of the output in the graph, behind a folded BatchNorm.
        folded: whether there is one.
        order: number of the operation in the order of execution.
        scale: what the folded BatchNorm multiplies every coordinate of one sample's output by, ``[1, ...]``, or ``None``.
    """

    name: str
    use: LinearUse | ConvolutionUse
    edge: GradientEdge
    folded: bool
    order: int
    scale: Tensor | None

    def linear_part(self, weight: Tensor) -> Tensor:
        """The layer's linear map applied to its inputs: no bias, no mean."""
        z = self.use.perturb(weight)
        return z if self.scale is None else z * self.scale

    def operator_square(self, weight: Tensor) -> float:
        """Squared Frobenius norm of the linear map on one sample's input, the unrolled matrix of a convolution.

        The entries' squares add up to what the map with squared entries makes of an input of ones.
        """
        ones = torch.ones_like(self.use.inputs[:1])
        use = (
            replace(self.use, inputs=ones, num=1)
            if isinstance(self.use, ConvolutionUse)
            else replace(self.use, inputs=ones)
        )
        squares = use.perturb(weight.double().square().to(weight.dtype))
        return float((squares if self.scale is None else squares * self.scale.square()).double().sum())

    def pixels(self, z: Tensor) -> Tensor:
        """Sum over the channels of the squares, ``[N, positions]``."""
        if isinstance(self.use, LinearUse):
            return self.use.per_position(z).square().sum(-1)
        return z.flatten(2).square().sum(1)


def find_sites(tape) -> list[Site]:
    """The sites of a tape's layers in the order of execution; layers without a use are left out."""
    sites = []
    for name in tape.layers:
        for use in tape.uses[name]:
            node, scale, folded = use.edge.node, None, False
            consumers = tape.graph.consumers[node]
            if len(consumers) == 1 and consumers[0][1] == 0 and operation(consumers[0][0]) in NORMALIZATIONS:
                folded, edge = True, GradientEdge(consumers[0][0], 0)
                ones = torch.ones_like(use.perturb(tape.weights[name].detach()))
                # BatchNorm in evaluation mode is diagonal: its derivative along ones is its scale.
                scale = torch.autograd.grad([edge], [use.edge], [ones], retain_graph=True)[0][:1].detach()
            else:
                edge = use.edge
            sites.append(Site(name, use, edge, folded, edge.node._sequence_nr(), scale))
    return sorted(sites, key=lambda site: site.order)


class Tangents:
    r"""Directional derivatives :math:`J_{ij} u` from the output of layer i to the outputs of all later layers.

    One backward pass from all sites at once with symbolic cotangents :math:`v_j` is kept with its graph:
    :math:`g_i = \sum_j J_{ij}^\top v_j`. The derivative of :math:`\langle g_i, u\rangle` in :math:`v_j` is :math:`J_{ij} u`.

    Args:
        sites: in the order of execution.
        outputs: their values.
    """

    def __init__(self, sites: Sequence[Site], outputs: Sequence[Tensor]):
        edges = [site.edge for site in sites]
        self.cotangents = [torch.zeros_like(z).requires_grad_() for z in outputs]
        with torch.enable_grad():
            self.gradients = torch.autograd.grad(edges, edges, self.cotangents, create_graph=True, allow_unused=True)

    def push(self, index: int, direction: Tensor) -> list[Tensor | None]:
        """``J u`` at every later site; ``None`` where the later site does not depend on this one."""
        later = self.cotangents[index + 1 :]
        if not later:
            return []
        return list(torch.autograd.grad(self.gradients[index], later, direction, retain_graph=True, allow_unused=True))


class Observer(TorchDispatchMode):
    """Watches one forward pass at the operator level; can add noise to one layer's output.

    Args:
        params: the weights of the forward pass, as they are passed to it.
        folded: layer -> whether a BatchNorm belongs to it.
        num: samples in the pass, which come first in every tensor.
        noise: ``(layer, what is added to its output)``.

    Attributes:
        outputs: layer -> its output.
        contractions: layer -> ``||x|| / ||phi(x)||`` per sample, the largest over the activations that are executed
            after this layer and before the next one.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        folded: Mapping[str, bool],
        num: int,
        noise: tuple[str, Tensor] | None = None,
    ):
        super().__init__()
        self.names = {params[name].untyped_storage().data_ptr(): name for name in folded}
        self.folded, self.num, self.noise = folded, num, noise
        self.outputs: dict[str, Tensor] = {}
        self.contractions: dict[str, Tensor] = {}
        self._last: str | None = None
        self._pending: tuple[str, Tensor] | None = None

    def _finish(self, name: str, output: Tensor) -> Tensor:
        if self.noise is not None and self.noise[0] == name:
            output = output + self.noise[1]
        self.outputs[name] = output.clone()  # operations in place may follow
        self._last = name
        return output

    def _norm(self, x: Tensor) -> Tensor:
        return x.reshape(self.num, -1).double().norm(dim=1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = func.overloadpacket.__name__
        plain = kind.removesuffix("_")
        watched = plain in ACTIVATIONS and self._last is not None and args[0].dim() and len(args[0]) % self.num == 0
        before = self._norm(args[0]) if watched else None
        out = func(*args, **(kwargs or {}))
        if watched:
            after = self._norm(out)
            ratio = torch.where(before > 0, before / after, torch.ones_like(before))
            known = self.contractions.get(self._last)
            self.contractions[self._last] = ratio if known is None else torch.maximum(known, ratio)
        elif kind in LINEAR:
            pointers = [a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)]
            name = next((self.names[p] for p in pointers if p in self.names), None)
            if name is not None and self.folded[name]:
                self._pending = (name, out)
            elif name is not None:
                out = self._finish(name, out)
        elif kind in BATCH_NORM and self._pending is not None and args[0].data_ptr() == self._pending[1].data_ptr():
            out = (self._finish(self._pending[0], out[0]), *out[1:])
            self._pending = None
        return out


def executed(tape) -> frozenset[str]:
    """Names of the operations that a forward pass executed and recorded."""
    return frozenset(operation(node) for node in tape.graph.order)


def has_attention(tape) -> bool:
    """A softmax whose result is multiplied by other activations."""
    names = executed(tape)
    return any(name.startswith("ScaledDotProduct") for name in names) or bool(
        names & {"Softmax", "SafeSoftmax"} and names & {"Bmm", "Baddbmm"}
    )
