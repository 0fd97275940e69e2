r"""How large the inputs are, over all training samples given.

``max_l2`` :math:`= \max\|x\|_2`, ``rms_l2`` :math:`= (\frac1n\sum\|x\|_2^2)^{1/2}`, ``max_abs`` :math:`= \max |x_i|`,
``max_pixel_l2``: the largest norm over the channels (axis 1) at one position, for inputs with positions. ``dimension``
is the number of coordinates of a sample (the largest, if they differ), ``resolution`` the geometric mean of a map's
sides. ``max_output_l2`` is the largest Euclidean norm of the fine-tuned network's output. They are maxima over a sample
and understate the supremum over the distribution that theorems speak of.

The first floating-point input counts. Exact. Cost: one forward pass over the training data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.quantities.base import Context, Measured, Part, stack

NAME = "input_norm"
SHARD = 512


def first_floating(inputs: Any) -> Tensor | None:
    """The first floating-point tensor among the inputs."""
    if isinstance(inputs, Tensor):
        return inputs if inputs.is_floating_point() else None
    values = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list | tuple) else ()
    return next((found for value in values if (found := first_floating(value)) is not None), None)


def measure(problem, context: Context) -> Measured:
    """The largest norms of inputs and outputs over all training samples given."""

    def shard(indices: range) -> Part:
        rows = []
        for batch in problem.data.batches(indices, problem.batch_size):
            batch = problem.to_device(batch)
            x = first_floating(batch.inputs).double()
            with torch.no_grad():
                outputs = problem.forward(problem.params, batch.inputs).double().flatten(1)
            pixels = x.norm(dim=1).flatten(1) if x.dim() > 2 else x.flatten(1).norm(dim=1, keepdim=True)
            sides = x.shape[2:]
            size = torch.tensor([x[0].numel(), math.prod(sides) ** (1 / max(1, len(sides)))], dtype=torch.float64)
            flat = x.flatten(1)
            columns = [flat.norm(dim=1), flat.abs().amax(1), pixels.amax(1), outputs.norm(dim=1)]
            rows.append(torch.cat([torch.stack(columns, 1).cpu(), size.expand(len(x), 2)], 1).numpy())
        return {"rows": np.concatenate(rows)}

    total = len(problem.data)
    ranges = [range(s, min(s + SHARD, total)) for s in range(0, total, SHARD)]
    rows = stack(context.map("train", ranges, shard), "rows")
    l2, largest, pixel, output, dimension, resolution = rows.T
    return Measured(
        {
            "max_l2": float(l2.max()),
            "rms_l2": float(np.sqrt(np.mean(l2**2))),
            "max_abs": float(largest.max()),
            "max_pixel_l2": float(pixel.max()),
            "dimension": int(dimension.max()),
            "resolution": float(resolution.max()),
            "num_samples": len(rows),
            "max_output_l2": float(output.max()),
        }
    )


def applies_to(problem) -> str | None:
    """There must be a floating-point input."""
    if first_floating(problem.batch([0]).inputs) is None:
        return "the inputs are integers (token numbers), which have no norm"
    return None
