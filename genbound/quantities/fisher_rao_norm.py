r"""The Fisher-Rao norm of the weights.

.. math:: \|w\|_{\mathrm{fr}}^2 = \langle w, F w\rangle, \qquad
   F = \mathbb E\,[\nabla_w \ell \, \nabla_w \ell^\top]
   \quad\Longrightarrow\quad \|w\|_{\mathrm{fr}}^2 = \mathbb E\,\langle w, \nabla_w \ell\rangle^2 .

A network of L hidden layers with activations of degree one (ReLU) and no biases is homogeneous of degree 1 in each of
its :math:`L + 1` weight matrices. By Euler's theorem
:math:`\sum_i \langle W_i, \partial f / \partial W_i\rangle = (L + 1) f`, hence
:math:`\langle w, \nabla_w\ell\rangle = (L + 1) \langle \partial\ell/\partial f, f\rangle` for every sample, and

.. math:: \texttt{value} = (L + 1) \sqrt{\mathbb E\,\langle \partial\ell/\partial f, f\rangle^2} ,

the mean over the measured samples and their labels. :math:`L + 1`, ``depth``, is the largest number of layers on a path
from the input to the output, whichever of them are measured (embeddings count where they are). Three neighbours stand
beside the value:

* ``parametric`` is :math:`\sqrt{\mathbb E \langle w, \nabla_w\ell\rangle^2}` with all parameters: the definition, which
  needs no homogeneity.
* ``identity_holds`` says whether the two agree to 0.1 %. They do not with biases, normalisation, embeddings or other
  activations; then ``value`` is the formula alone.
* ``model_expectation`` is ``value`` with labels drawn from the model. For cross-entropy
  :math:`\mathbb E_{y \sim p} \langle\partial\ell/\partial f, f\rangle^2 = \mathrm{Var}_{c\sim p}(f_c)`.

Unit: that of the loss. Cost: two forward passes and one backward pass. Exact over the measured samples; ``squared_sem``
is the standard error of :math:`\texttt{value}^2` from the choice of the samples.

References:
    Liang, Poggio, Rakhlin & Stokes, Fisher-Rao metric, geometry, and complexity of neural networks, AISTATS 2019
        (theorem 3.1, derived anew above). Jiang et al., ICLR 2020, list it as ``fisher-rao``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from genbound.data.samples import Batch
from genbound.estimators.estimate import data_sem
from genbound.network.layers import candidates_for, layers_in
from genbound.network.loss_functions import CROSS_ENTROPY
from genbound.network.problem import Problem
from genbound.network.tape import Tape
from genbound.network.weight_uses import LeafUse
from genbound.quantities.base import Context, Measured, Part, stack


def measure(problem: Problem, context: Context) -> Measured:
    """The norm by the formula and by its definition, from per-sample inner products."""
    parts = context.map("samples", problem.shards(), lambda positions: _inner_products(problem, positions))
    outer, whole, variance = (stack(parts, key) for key in ("outer", "whole", "variance"))
    layers, num = depth(problem), problem.num_samples
    value = layers * math.sqrt((outer**2).mean())
    parametric = math.sqrt((whole**2).mean())
    squares = (layers * outer) ** 2
    plain = problem.loss.name == CROSS_ENTROPY.name and problem.num_outputs == problem.num_classes
    error = np.abs(whole - layers * outer).max()
    return Measured(
        {
            "value": value,
            "squared_sem": float(data_sem(squares, np.zeros_like(squares), problem.num_data)),
            "parametric": parametric,
            "identity_holds": bool(error <= 1e-3 * np.abs(whole).max()),
            "model_expectation": layers * math.sqrt(variance.mean()) if plain else None,
            "depth": layers,
            "num_samples": num,
        }
    )


def _inner_products(problem: Problem, positions: Sequence[int]) -> Part:
    """Of every sample: ``outer`` is ``<dl/df, f>``, ``whole`` is ``<w, dl/dw>``, in the unit of the loss.

    ``variance`` is that of f under the model's probabilities. All are ``[n]``.
    """
    outer, whole, variance = [], [], []
    for run in problem.batches(positions):
        batch = problem.batch(run)
        with torch.no_grad():
            outputs = problem.forward(problem.params, batch.inputs)
        gradient = problem.loss.output_gradient(outputs, batch.targets)
        outer.append((gradient * outputs).flatten(1).double().sum(1))
        whole.append(_radial(problem, batch, gradient))
        p = outputs.double().softmax(-1)
        spread = outputs.double() - (p * outputs.double()).sum(-1, keepdim=True)
        variance.append((p * spread.square()).flatten(1).sum(1))
    return {
        "outer": torch.cat(outer).cpu().numpy(),
        "whole": torch.cat(whole).cpu().numpy(),
        "variance": torch.cat(variance).cpu().numpy(),
    }


def _radial(problem: Problem, batch: Batch, gradient: Tensor) -> Tensor:
    """``<w, dl/dw>`` of every sample ``[n]``, all at once, from ``dl/df`` in the outputs' shape.

    ``<J^T u, w>`` differentiated in u is ``J w``, the output's derivative.
    """
    weights = {k: p.detach().requires_grad_() for k, p in problem.params.items() if p.is_floating_point()}
    with torch.enable_grad():
        outputs = problem.forward({**problem.params, **weights}, batch.inputs)
        u = torch.zeros_like(outputs).requires_grad_()
        pulled = torch.autograd.grad(outputs, list(weights.values()), u, create_graph=True, allow_unused=True)
        pairs = [(g, w) for g, w in zip(pulled, weights.values(), strict=True) if g is not None]
        inner = reduce(torch.add, [(g * w.detach()).sum().to(u.device) for g, w in pairs])
    (moved,) = torch.autograd.grad(inner, u)
    return (gradient * moved).flatten(1).double().sum(1)


def depth(problem: Problem) -> int:
    """Largest number of layers on a path from the input to the output of the executed graph, measured or not."""
    tape, measured = Tape(problem, [0], dict.fromkeys(candidates_for(problem.params, (), ()), True)), problem.layers
    every = layers_in(tape, ("*",), dict.fromkeys(tape.layers, True))
    counted = {layer.name for layer in every if layer.kind != "embedding"} | {layer.name for layer in measured}
    uses = [use for name in counted for use in tape.uses[name]]
    places = {use.place.node for use in uses if not isinstance(use, LeafUse)}
    for leaf in (use.place.node for use in uses if isinstance(use, LeafUse)):
        places |= {node for node, _ in tape.graph.consumers[leaf]}
    longest: dict = {}
    for node in tape.graph.order:
        below = max((longest[operand] for operand, _ in node.next_functions if operand is not None), default=0)
        longest[node] = below + (node in places)
    return max(longest.values(), default=0)
