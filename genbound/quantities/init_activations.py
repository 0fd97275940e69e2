r"""How large the inputs of each layer are in the *pretrained* network, on the training data.

.. math:: \texttt{value} = \max_k \Bigl(\frac1m \sum_x h^0_k(x)^2\Bigr)^{1/2}

the largest root mean square, over the m training samples given, of a coordinate k of the layer's input (after the
activation; of a convolution: any channel at any position). ``width`` is the number of those coordinates. It is what the
data-dependent form of Gouk et al. 2021 has in place of a product of norms: the pretrained network is one fixed
function, whose outputs on the data need no bound.

A layer whose use is not recognised as linear has a null and the reason. Unit: that of the activations. Exact. Cost: one
forward pass over the training data.
"""

from __future__ import annotations

import numpy as np
import torch

from genbound.network.applied_weights import find_uses
from genbound.network.graph import Graph
from genbound.network.weight_uses import ConvolutionUse, LinearUse
from genbound.quantities.base import Context, Measured, Part
from genbound.structure.reader import read_structure

NAME = "init_activations"
UNKNOWN = "its use in the network is not recognised as linear"


def _sums(problem, indices) -> dict[str, list[torch.Tensor]]:
    """Layer -> sums over samples of the squared coordinates of its input, one for each of its uses."""
    batch = problem.to_device(next(iter(problem.data.batches(indices, len(indices)))))
    leaves = {layer.name: problem.init[layer.name].detach().requires_grad_() for layer in problem.layers}
    with torch.enable_grad():
        output = problem.forward({**problem.init, **leaves}, batch.inputs, problem.init_buffers)
    graph, found = Graph(output, leaves), {}
    for name, weight in leaves.items():
        uses = find_uses(graph, name, weight, len(indices), problem.samples_first[name])
        if uses and all(isinstance(use, LinearUse | ConvolutionUse) for use in uses):
            inputs = [use.inputs.detach().reshape(len(indices), -1) for use in uses]
            found[name] = [x.double().square().sum(0).cpu() for x in inputs]
    return found


def measure(problem, context: Context) -> Measured:
    """The largest root mean square of a coordinate of every layer's input, over all training samples given."""
    total, names = len(problem.data), [layer.name for layer in problem.layers]

    def all_samples(_) -> Part:
        sums: dict[str, list[torch.Tensor]] = {}
        for start in range(0, total, problem.batch_size):
            for name, found in _sums(problem, range(start, min(start + problem.batch_size, total))).items():
                if name in sums and [len(a) for a in sums[name]] == [len(a) for a in found]:
                    sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)]
                else:  # the first batch, or samples of another size
                    sums[name] = found if start == 0 else []
        rows = [
            (max(float(a.max()) for a in sums[name]), max(len(a) for a in sums[name]))
            if sums.get(name)
            else (np.nan, 0)
            for name in names
        ]
        return {"rows": np.array(rows).reshape(len(names), 2)}

    (part,) = context.map("train", [0], all_samples)
    layers = {}
    for name, (square, width) in zip(names, part["rows"], strict=True):
        known = bool(np.isfinite(square))
        layers[name] = {"value": float((square / total) ** 0.5) if known else None, "width": int(width)} | (
            {} if known else {"reason": UNKNOWN}
        )
    return Measured({"layers": layers, "num_samples": total})


def applies_to(problem) -> str | None:
    """Only bounds that need a structure read it."""
    if (structure := read_structure(problem)).tree is None:
        return f"only bounds by row sums read it, and there is none: {structure.reason}"
    return None
