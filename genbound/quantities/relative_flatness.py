r"""Relative flatness: a layer's Hessian trace, weighted by the scalar products of the neurons' weights.

With :math:`w_s` the weights of neuron s (a row of the layer's matrix) and :math:`H_{s,s'}` the block of the Hessian of
the mean loss that has the derivatives in :math:`w_s` and :math:`w_{s'}`,

.. math:: \kappa = \sum_{s, s'} \langle w_s, w_{s'}\rangle\, \mathrm{Tr}\,H_{s,s'} .

It does not change when a layer with positively homogeneous activations is multiplied by a number and the next one is
divided by it. (Numbers of their own for the neurons leave the first of the two alone, but not the one that reads them.)
For a layer that the output is piecewise linear in, the Hessian is its Gauss-Newton part
:math:`\sum_c J^\top S_c S_c^\top J`, and with :math:`G_c = J^\top S_c` in the shape of the layer's matrix

.. math:: \kappa = \mathbb E \sum_c \|W^\top G_c\|_F^2 ,

exactly, from one backward pass for each output coordinate. Other layers are named under ``without`` with the reason.
``feature_layer`` is the last layer of a forward pass, which reads the learned features: the layer of the theorem.

The neurons of a convolution are its output channels, with the kernel that all places share.

Unit: that of the loss. Cost: as many backward passes to the activations as there are output coordinates. Exact over the
measured samples; ``data_sem`` is what their choice adds.

References:
    Petzka, Kamp, Adilova, Sminchisescu & Boley, Relative flatness and generalization, NeurIPS 2021 (definition).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from genbound.estimators.estimate import means_by_column
from genbound.network.problem import Problem
from genbound.network.tape import Tape, basis
from genbound.network.weight_uses import ConvolutionUse, LeafUse, LinearUse
from genbound.quantities.base import Context, Measured, stacked
from genbound.quantities.catalogue.relative_flatness import RelativeFlatnessOptions


def measure(problem: Problem, context: Context) -> Measured:
    """The value of every layer that has one, and why the others have none."""
    options: RelativeFlatnessOptions = context.options
    without = _without(problem, options)
    names = [layer.name for layer in problem.layers if layer.name not in without]
    found = stacked(context, "samples", problem.shards(), lambda shard: {"value": _values(problem, names, shard)})
    columns = ((found["value"][:, i], None) for i in range(len(names)))
    means = means_by_column(columns, problem.num_data)
    rows = {
        name: {key: float(of[i]) for key, of in means.items()} | {"num_samples": problem.num_samples}
        for i, name in enumerate(names)
    }
    return Measured({"layers": rows, "without": without, "feature_layer": _last_layer(problem)})


def _without(problem: Problem, options: RelativeFlatnessOptions) -> dict[str, str]:
    """Layer -> why it has no value."""
    if problem.num_outputs > options.exact_outputs:
        reason = f"{problem.num_outputs} output coordinates are more than relative_flatness.exact_outputs"
        return {layer.name: reason for layer in problem.layers}
    found = {}
    for layer in problem.layers:
        # The shortest sample and the longest: their code may differ.
        tapes = [t for p in sorted({0, problem.num_samples - 1}) for t in problem.tapes([p], [layer.name])]
        curved = [tape.curved_by[layer.name] for tape in tapes if layer.name in tape.curved_by]
        if curved:
            found[layer.name] = f"the output is curved in it ({curved[0]})"
        elif not all(isinstance(use, LinearUse | ConvolutionUse) for tape in tapes for use in tape.uses[layer.name]):
            found[layer.name] = "it is not used as a linear map or a convolution"
    return found


def _values(problem: Problem, names: Sequence[str], shard: Sequence[int]) -> np.ndarray:
    """The layers' values of every sample of a shard, ``[n, L]``."""
    found = np.zeros((len(shard), len(names)))
    if not names:
        return found
    column = {name: i for i, name in enumerate(names)}
    for tape in problem.tapes(shard, names):
        rows = np.array([position - shard[0] for position in tape.positions])
        columns = np.array([column[name] for name in tape.layers])
        found[np.ix_(rows, columns)] = _of_tape(tape).cpu().numpy()
    return found


def _of_tape(tape: Tape) -> Tensor:
    r""":math:`\sum_c s_c \|W^\top G_c\|^2` of every sample and layer, ``[N, L]`` in float64."""
    factor = tape.network.loss.output_factor(tape.outputs.detach(), tape.targets)
    total = torch.zeros(len(tape), len(tape.layers), dtype=torch.float64, device=tape.outputs.device)
    for column in basis(tape.outputs, factor.last_vanishes):
        sign = 1.0 if factor.signs is None else (factor.signs * column).flatten(1).sum(1, keepdim=True).double()
        gradients = tape.backward(factor.columns(column), tape.layers)
        total += sign * torch.stack([_squared_norm(tape, name, gradients).to(total.device) for name in tape.layers], 1)
    return total


def _squared_norm(tape: Tape, name: str, gradients: Mapping[str, Sequence[Tensor | None]]) -> Tensor:
    """``||W^T G||^2`` of every sample ``[N]``, G the weight gradient that the gradients at a layer's uses make."""
    weight, pairs = tape.weights[name].detach(), zip(tape.uses[name], gradients[name], strict=True)
    present = [(u, g) for u, g in pairs if g is not None and isinstance(u, LinearUse | ConvolutionUse)]
    if not present:
        return torch.zeros(len(tape), dtype=torch.float64, device=weight.device)
    use, g = present[0]
    if len(present) == 1 and isinstance(use, LinearUse):  # W^T G is the gradient of W^T g: no weight of a sample's own
        return use.squared_norm(g @ (weight.mT if use.transposed else weight)).double()
    total = sum(use.adjoint(g) for use, g in present)
    neurons, gradient = _neurons(use, weight).double(), torch.vmap(lambda one: _neurons(use, one))(total).double()
    return ((neurons @ neurons.mT) * (gradient @ gradient.mT)).flatten(1).sum(1)


def _neurons(use: LinearUse | ConvolutionUse, weight: Tensor) -> Tensor:
    """A weight as it is stored, as ``[groups, neurons, weights of one]``."""
    if isinstance(use, LinearUse):
        return (weight.mT if use.transposed else weight).unsqueeze(0)
    split = weight.unflatten(0, (use.groups, -1))
    return (split.transpose(1, 2) if use.transposed else split).flatten(2)


def _last_layer(problem: Problem) -> str:
    """The layer whose use is the last one of a forward pass."""
    names = [layer.name for layer in problem.layers]
    tape = problem.tape([0], names)
    order = {node: i for i, node in enumerate(tape.graph.order)}

    def place(name: str) -> int:
        nodes = []
        for use in tape.uses[name]:
            node = use.place.node
            nodes += [after for after, _ in tape.graph.consumers[node]] if isinstance(use, LeafUse) else [node]
        return max((order.get(node, -1) for node in nodes), default=-1)

    return max(names, key=place)


def forecast(problem: Problem, options: RelativeFlatnessOptions) -> float:
    """Gradients over the measured samples: a backward pass to the activations is about 0.4 of one."""
    return 0.5 + 0.4 * min(problem.num_outputs, options.exact_outputs)
