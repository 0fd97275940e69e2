r"""How large the inputs of each layer are in the *pretrained* network, on the training data.

.. math:: \texttt{value} = \max_k \Bigl(\frac1m \sum_x h^0_k(x)^2\Bigr)^{1/2}

is the largest root mean square of a coordinate k of the layer's input, over the m training samples given. The input is
taken after the activation; a coordinate of a convolution's is any channel at any position. ``width`` is the number of
coordinates. The data-dependent form of Gouk et al. 2021 has this in place of a product of norms: the pretrained network
is one fixed function, whose outputs on the data need no bound.

A layer whose use is not recognised as linear has a null and the reason. Unit: that of the activations. Exact. Cost: one
forward pass over the training data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.network.applied_weights import find_uses
from genbound.network.graph import Graph
from genbound.network.problem import Problem
from genbound.network.weight_uses import ConvolutionUse, LinearUse
from genbound.quantities.base import Context, Measured, Part
from genbound.structure.reader import read_structure

UNKNOWN = "its use in the network is not recognised as linear"


def measure(problem: Problem, context: Context) -> Measured:
    """The largest root mean square of a coordinate of every layer's input, over all training samples given."""
    (part,) = context.map("train", [0], lambda _: _largest_squares(problem))
    rows: dict[str, dict[str, Any]] = {}
    for layer, (square, width) in zip(problem.layers, part["rows"], strict=True):
        if np.isfinite(square):
            rows[layer.name] = {"value": float((square / len(problem.data)) ** 0.5), "width": int(width)}
        else:
            rows[layer.name] = {"value": None, "width": int(width), "reason": UNKNOWN}
    return Measured({"layers": rows, "num_samples": len(problem.data)})


def _largest_squares(problem: Problem) -> Part:
    """For every layer the largest sum of a coordinate's squares over the samples, and the number of coordinates.

    Both stand in ``rows [L, 2]``; the sum is NaN where it is not known.
    """
    sums = _all_sums(problem)
    rows = [
        (max(float(a.max()) for a in sums[layer.name]), max(len(a) for a in sums[layer.name]))
        if sums.get(layer.name)
        else (np.nan, 0)
        for layer in problem.layers
    ]
    return {"rows": np.array(rows).reshape(len(rows), 2)}


def _all_sums(problem: Problem) -> dict[str, list[Tensor]]:
    """The sums of :func:`_sums` over all training samples; no sums for a layer whose samples differ in size."""
    total, size = len(problem.data), problem.batch_size
    sums: dict[str, list[Tensor]] = {}
    for start in range(0, total, size):
        for name, found in _sums(problem, range(start, min(start + size, total))).items():
            if name in sums and [len(a) for a in sums[name]] == [len(a) for a in found]:
                sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)]
            else:  # the first batch, or samples of another size
                sums[name] = found if start == 0 else []
    return sums


def _sums(problem: Problem, indices: range) -> dict[str, list[Tensor]]:
    """Layer -> sums over these samples of its input's squared coordinates ``[width]``, one for each of its uses."""
    batch = problem.to_device(next(iter(problem.data.batches(indices, len(indices)))))
    leaves = {layer.name: problem.init[layer.name].detach().requires_grad_() for layer in problem.layers}
    with torch.enable_grad():
        output = problem.forward({**problem.init, **leaves}, batch.inputs, problem.init_buffers)
    graph, found = Graph(output, leaves), {}
    for name, weight in leaves.items():
        uses = find_uses(graph, name, weight, len(indices), problem.samples_first[name])
        known = [use for use in uses if isinstance(use, LinearUse | ConvolutionUse)]
        if uses and len(known) == len(uses):
            inputs = [use.inputs.detach().reshape(len(indices), -1) for use in known]
            found[name] = [x.double().square().sum(0).cpu() for x in inputs]
    return found


def applies_to(problem: Problem) -> str | None:
    """Only bounds that need a structure read it."""
    if (structure := read_structure(problem)).tree is None:
        return f"only bounds by row sums read it, and there is none: {structure.reason}"
    return None
