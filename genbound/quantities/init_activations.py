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

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.data.samples import Batch
from genbound.network.applied_weights import find_uses
from genbound.network.graph import Graph
from genbound.network.problem import Problem
from genbound.network.weight_uses import ConvolutionUse, LinearUse
from genbound.quantities.base import Context, Measured, Part, data_shards
from genbound.structure.reader import read_structure

MOST = 2**28  # bytes of the sums of all shards
UNKNOWN = "its use in the network is not recognised as linear"


def measure(problem: Problem, context: Context) -> Measured:
    """The largest root mean square of a coordinate of every layer's input, over all training samples given."""
    sums = _merged(context.map("train", _shards(problem), lambda shard: _shard_sums(problem, shard)))
    num, rows = len(problem.data), dict[str, dict[str, Any]]()
    for i, layer in enumerate(problem.layers):
        uses = [square for name, square in sums.items() if name.startswith(f"{i} ")]
        width = max((len(square) for square in uses), default=0)
        if uses and all(np.isfinite(square).all() for square in uses):
            value = float((max(float(square.max()) for square in uses) / num) ** 0.5)
            rows[layer.name] = {"value": value, "width": width}
        else:
            rows[layer.name] = {"value": None, "width": 0, "reason": UNKNOWN}
    return Measured({"layers": rows, "num_samples": num})


def _shards(problem: Problem) -> list[range]:
    """All training samples in runs whose sums are stored together, few enough that the sums of all fit in memory."""
    num = len(problem.data)
    size = sum(8 * len(square) for uses in _sums(problem, problem.data.batch([0])).values() for square in uses)
    count = min(len(data_shards(num)), max(1, MOST // max(1, size)))
    ends = [num * k // count for k in range(count + 1)]
    return [range(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def _shard_sums(problem: Problem, shard: range) -> Part:
    """``"LAYER USE"`` -> the sums over the samples of the squares of that input's coordinates ``[width]``.

    Of a layer whose samples differ in size there is one number for each use, which is none.
    """
    sums: dict[str, np.ndarray] = {}
    numbers = {layer.name: i for i, layer in enumerate(problem.layers)}
    for number, batch in enumerate(problem.data.batches(shard, problem.batch_size)):
        found = _sums(problem, batch)
        here = {f"{numbers[name]} {u}": square.numpy() for name, uses in found.items() for u, square in enumerate(uses)}
        sums = _added(sums, here) if number else here
    return sums


def _merged(parts: Sequence[Part]) -> Part:
    """The sums of all shards."""
    return functools.reduce(_added, parts)


def _added(one: Part, other: Part) -> Part:
    """The sums of both; not a number for what is not in both, or differs in size."""
    unknown = np.full(1, np.nan)
    return {
        name: one[name] + other[name]
        if name in one and name in other and one[name].shape == other[name].shape
        else unknown
        for name in [*one, *(name for name in other if name not in one)]
    }


def _sums(problem: Problem, samples: Batch) -> dict[str, list[Tensor]]:
    """Layer -> sums over these samples of its input's squared coordinates ``[width]``, one for each of its uses."""
    batch = problem.to_device(samples)
    leaves = {layer.name: problem.init[layer.name].detach().requires_grad_() for layer in problem.layers}
    with torch.enable_grad():
        output = problem.forward({**problem.init, **leaves}, batch.inputs, problem.init_buffers)
    graph, found = Graph(output, leaves), {}
    for name, weight in leaves.items():
        uses = find_uses(graph, name, weight, len(batch), problem.samples_first[name])
        known = [use for use in uses if isinstance(use, LinearUse | ConvolutionUse)]
        if uses and len(known) == len(uses):
            inputs = [use.inputs.detach().reshape(len(batch), -1) for use in known]
            found[name] = [x.double().square().sum(0).cpu() for x in inputs]
    return found


def applies_to(problem: Problem) -> str | None:
    """Only bounds that need a structure read it."""
    if (structure := read_structure(problem)).tree is None:
        return f"only bounds by row sums read it, and there is none: {structure.reason}"
    return None
