r"""One forward pass of a few samples, kept with its graph, and every derivative taken from it.

For a weight that acts by ``z = A(W)`` (see :mod:`genbound.network.weight_uses`) and the sum over the samples of
:math:`\phi = \ell` (or of its part that is linearised in the output), the block of every sample at once is

.. math:: H_n V_n = A_n^*\,\bigl(\nabla_z^2 \phi\; A(V)\bigr)_n ,

one double backward through ``z``: no weight gradient is formed, and no weight is copied per sample. ``A`` is
linear and its own inputs do not depend on the weight, so nothing is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from genbound.network.finite_losses import check_finite
from genbound.network.read_pass import ReadPass
from genbound.network.weight_uses import LeafUse

if TYPE_CHECKING:
    from genbound.network.network import Network

Value = TypeVar("Value")


class Tape(ReadPass):
    r"""A forward pass of the samples at ``positions``.

    Args:
        network: what is run.
        positions: which of its measured samples, N of them.
        samples_first: the layers whose derivatives will be asked for, each with the order of the rows of the operations
            that use it: True sample by sample, False position by position.

    Attributes:
        targets: labels of the samples, ``[N, ...]``.
        outputs: the network's output, ``[N, ...]``, on the graph.
        losses: ``[N]``, in the loss's unit, on the graph.

    What the record says of the layers is a :class:`~genbound.network.read_pass.ReadPass`'s.
    """

    def __init__(self, network: Network, positions: Sequence[int], samples_first: Mapping[str, bool]):
        self.network, self.positions = network, list(positions)
        batch, loss = network.batch(self.positions), network.loss
        self.targets = batch.targets
        weights = {name: network.params[name].detach().requires_grad_() for name in samples_first}
        with torch.enable_grad():
            outputs = network.forward({**network.params, **weights}, batch.inputs)
            loss.check_targets(outputs, self.targets)
            scores, targets = outputs.view_as(outputs), self.targets
            if scores.requires_grad:
                scores.register_hook(lambda gradient: loss.with_all_digits(gradient, targets))
            self.losses = loss.per_sample(scores, targets)
        check_finite(self.losses, batch.indices, network.data.spec)
        super().__init__(outputs, weights, samples_first, len(self.positions), loss.convex)
        self._gradients: dict[str, dict[str, list[Tensor | None]]] = {}

    def needs_single_samples(self, name: str) -> bool:
        """The layer's use is the weight itself, which all samples of the pass share."""
        return len(self) > 1 and any(isinstance(use, LeafUse) for use in self.uses[name])

    # -- first derivatives ------------------------------------------------------------------------------------

    def edges(self, names: Iterable[str]) -> list[GradientEdge]:
        """Places of the results of the layers' uses in the graph, one use after another."""
        return [use.place for name in names for use in self.uses[name]]

    def _split(self, names: Sequence[str], values: Sequence[Value]) -> dict[str, list[Value]]:
        iterator = iter(values)
        return {name: [next(iterator) for _ in self.uses[name]] for name in names}

    def backward(self, cotangent: Tensor, names: Sequence[str]) -> dict[str, list[Tensor | None]]:
        """Gradients of ``<cotangent, outputs>`` at every use of the layers: ``J^T`` up to the activations.

        Args:
            cotangent: ``[N, ...]``, of the outputs' shape.
            names: layers.

        Returns:
            layer -> one gradient for each of its uses, of the shape of the use's result; ``None`` where there is none.
        """
        edges = self.edges(names)
        if not edges:
            return {name: [] for name in names}
        values = torch.autograd.grad(self.outputs, edges, cotangent, retain_graph=True, allow_unused=True)
        return self._split(names, values)

    def output_gradient(self) -> Tensor:
        """Gradient of every sample's loss in its own output, ``[N, ...]``, detached."""
        return self.network.loss.output_gradient(self.outputs, self.targets)

    def gradients(self, part: str = "hessian") -> dict[str, list[Tensor | None]]:
        """Gradients at every use, like :meth:`backward`, but on the graph; taken once for all layers and kept.

        ``part="remainder"`` freezes the gradient in the output, so that a second derivative sees only
        ``R = sum_c (dl/df_c) Hessian(f_c)``, what the Hessian has beside its Gauss-Newton part.
        """
        if part not in self._gradients:
            if part == "hessian":
                self._gradients[part] = self._differentiable(self.losses.sum(), None)
            else:
                self._gradients[part] = self._differentiable(self.outputs, self.output_gradient())
        return self._gradients[part]

    def has_gradients(self, part: str) -> bool:
        """Whether :meth:`gradients` were taken."""
        return part in self._gradients

    def _differentiable(self, outputs: Tensor, cotangent: Tensor | None) -> dict[str, list[Tensor | None]]:
        edges = self.edges(self.layers)
        if not edges:  # no layer acts on these samples
            return {name: [] for name in self.layers}
        values = torch.autograd.grad(outputs, edges, cotangent, create_graph=True, allow_unused=True)
        return self._split(self.layers, values)

    # -- second derivatives -----------------------------------------------------------------------------------

    def activation_products(
        self,
        perturbations: Mapping[str, list[Tensor]],
        targets: Sequence[str],
        part: str = "hessian",
        cotangent: Tensor | None = None,
    ) -> dict[str, list[Tensor]]:
        """``q = M u``: second derivative in the activations along ``u``, at every use of the target layers.

        Args:
            perturbations: layer -> ``u`` for each of its uses, of the shape of the use's result. Several layers may
                move at once; then ``q`` holds the cross-layer blocks as well.
            targets: layers where the second derivative is taken.
            part: ``hessian`` or ``remainder``, see :meth:`gradients`.
            cotangent: ``[N, ...]``; the second derivative is then that of ``<cotangent, outputs>``, whatever the part.

        Returns:
            layer -> ``q`` for each of its uses, of the shape of the use's result.
        """
        gradients = self.gradients(part) if cotangent is None else self._differentiable(self.outputs, cotangent)
        outputs, directions = [], []
        for name, us in perturbations.items():
            for gradient, u in zip(gradients[name], us, strict=True):
                if gradient is not None and gradient.requires_grad:
                    outputs.append(gradient)
                    directions.append(u)
        edges = self.edges(targets)
        devices = [self.weights[name].device for name in targets for _ in self.uses[name]]
        values: Sequence[Tensor | None] = [None] * len(edges)
        if outputs and edges:
            values = torch.autograd.grad(outputs, edges, directions, retain_graph=True, allow_unused=True)
        # A missing second derivative is an exact zero.
        found = [
            _zeros(edge, device) if value is None else value
            for value, edge, device in zip(values, edges, devices, strict=True)
        ]
        return self._split(targets, found)

    def product(self, name: str, v: Tensor, part: str = "hessian") -> tuple[Tensor, Tensor]:
        """One layer's own block applied to ``v``.

        Args:
            name: the layer.
            v: direction of its weight, ``[*shape]`` shared by the samples, or ``[N, *shape]``.
            part: ``hessian`` or ``remainder``, see :meth:`gradients`.

        Returns:
            ``(v^T H v [N], H v [N, *shape])`` for every sample.
        """
        us = [use.perturb(v) for use in self.uses[name]]
        qs = self.activation_products({name: us}, [name], part)[name]
        return self.inner(name, us, qs), self.adjoint(name, qs)

    def inner(self, name: str, us: Sequence[Tensor], qs: Sequence[Tensor]) -> Tensor:
        """``sum_t u_t . q_t`` per sample over all uses of a layer, ``[N]`` in float64 on the device of the outputs."""
        total = torch.zeros(len(self), dtype=torch.float64, device=self.outputs.device)
        for use, u, q in zip(self.uses[name], us, qs, strict=True):
            total = total + (use.per_sample(u).double() * use.per_sample(q).double()).sum(1).to(total.device)
        return total

    def adjoint(self, name: str, qs: Sequence[Tensor]) -> Tensor:
        """``A^* q`` per sample: back from the results of a layer's uses to its weight, ``[N, *shape]``."""
        weight = self.weights[name]
        total = torch.zeros(len(self), *weight.shape, dtype=self.outputs.dtype, device=weight.device)
        for use, q in zip(self.uses[name], qs, strict=True):
            total = total + use.adjoint(q)
        return total

    def squared_norm(self, name: str, gs: Sequence[Tensor | None]) -> Tensor:
        """``||A^* g||^2`` per sample, ``[N]`` in float64: squared norm of the weight gradient, beside the outputs.

        Args:
            name: the layer.
            gs: gradients at its uses, as :meth:`backward` gives them.
        """
        present = [(use, g) for use, g in zip(self.uses[name], gs, strict=True) if g is not None]
        if not present:
            return torch.zeros(len(self), dtype=torch.float64, device=self.outputs.device)
        if len(present) == 1:
            use, g = present[0]
            return use.squared_norm(g).double().to(self.outputs.device)
        total = present[0][0].adjoint(present[0][1])
        for use, g in present[1:]:
            total = total + use.adjoint(g)
        return total.flatten(1).square().sum(1).double().to(self.outputs.device)

    # -- directional derivatives of the output ----------------------------------------------------------------

    def output_derivatives(self, vs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``u = J_i v_i`` for each layer on its own.

        Args:
            vs: layer -> direction of its weight, ``[*shape]`` or ``[N, *shape]``.

        Returns:
            layer -> ``[N, *output]`` in float64.

        Cost: with fewer outputs than layers one backward pass for each output coordinate, which serves all layers;
        otherwise a derivative of the backward pass for each layer.
        """
        if not vs:
            return {}
        us = {name: [use.perturb(v) for use in self.uses[name]] for name, v in vs.items()}
        return self._by_coordinate(us) if self.outputs[0].numel() <= len(vs) else self._by_layer(us)

    def _by_coordinate(self, us: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
        columns: dict[str, list[Tensor]] = {name: [] for name in us}
        for cotangent in basis(self.outputs):
            for name, gs in self.backward(cotangent, list(us)).items():
                columns[name].append(self.inner(name, us[name], filled(gs, us[name])))
        return {name: torch.stack(c, 1).view(self.outputs.shape) for name, c in columns.items()}

    def _by_layer(self, us: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
        """The backward pass is linear in its cotangent: its derivative there along ``u`` is the forward derivative."""
        probe = torch.zeros_like(self.outputs, requires_grad=True)
        names, result = list(us), {}
        values = torch.autograd.grad(self.outputs, self.edges(names), probe, create_graph=True, allow_unused=True)
        for name, gs in self._split(names, values).items():
            pairs = [(g, u) for g, u in zip(gs, us[name], strict=True) if g is not None and g.requires_grad]
            if pairs:
                result[name] = torch.autograd.grad(
                    [g for g, _ in pairs], probe, [u for _, u in pairs], retain_graph=True
                )[0].double()
            else:
                result[name] = torch.zeros_like(self.outputs, dtype=torch.float64).detach()
        return result


def filled(gs: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Gradients at the uses of a layer, zeros of the same shape where the output does not depend on one."""
    return [torch.zeros_like(u) if g is None else g for g, u in zip(gs, like, strict=True)]


def basis(outputs: Tensor, but_last: bool = False) -> Iterable[Tensor]:
    """The unit vectors of one sample's output, each repeated for every sample: cotangents ``[N, *output]``.

    ``but_last`` leaves out those of the last coordinate along the last axis.
    """
    for index in range(outputs[0].numel()):
        if but_last and (index + 1) % outputs.shape[-1] == 0:
            continue
        cotangent = outputs.new_zeros(len(outputs), outputs[0].numel())
        cotangent[:, index] = 1
        yield cotangent.view(outputs.shape)


def _zeros(edge: Any, device: torch.device) -> Tensor:
    """Zeros in the shape of the result at a place of autograd's record, which notes it beside the operation."""
    noted = edge.node._input_metadata[edge.output_nr]
    return torch.zeros(tuple(noted.shape), dtype=noted.dtype, device=device)
