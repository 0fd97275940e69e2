r"""How large the inputs are, over all training samples given.

``max_l2`` is :math:`\max\|x\|_2`, ``rms_l2`` is :math:`(\frac1n\sum\|x\|_2^2)^{1/2}` and ``max_abs`` is
:math:`\max |x_i|`. ``max_pixel_l2`` is the largest norm over the channels (axis 1) at one position, for inputs with
positions. ``dimension`` is the number of coordinates of a sample (the largest, if they differ), ``resolution`` the
geometric mean of a map's sides. ``max_output_l2`` is the largest Euclidean norm of the fine-tuned network's output, and
``output_dimension`` the number of its coordinates (the largest). They are maxima over a sample and understate the
supremum over the distribution that theorems speak of.

The first floating-point input counts. Unit: that of the inputs, or of the outputs. Exact. Cost: one forward pass over
the training data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.data.samples import Batch
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, data_shards, stack


def measure(problem: Problem, context: Context) -> Measured:
    """The largest norms of inputs and outputs over all training samples given."""

    def sizes(shard: range) -> Part:
        batches = problem.data.batches(shard, problem.batch_size)
        return {"rows": np.concatenate([_sizes(problem, problem.to_device(batch)) for batch in batches])}

    rows = stack(context.map("train", data_shards(len(problem.data)), sizes), "rows")
    l2, largest, pixel, output, dimension, resolution, outputs = rows.T
    return Measured({
        "max_l2": float(l2.max()),
        "rms_l2": float(np.sqrt(np.mean(l2**2))),
        "max_abs": float(largest.max()),
        "max_pixel_l2": float(pixel.max()),
        "dimension": int(dimension.max()),
        "resolution": float(resolution.max()),
        "num_samples": len(rows),
        "max_output_l2": float(output.max()),
        "output_dimension": int(outputs.max()),
    })  # fmt: skip


def _sizes(problem: Problem, batch: Batch) -> np.ndarray:
    """How large every sample of a batch is ``[n, 7]``.

    The columns are the input's norm, its largest entry, its largest norm at a position, the output's norm, the number
    of coordinates, the geometric mean of the sides, and the number of the output's coordinates.
    """
    found = first_floating(batch.inputs)
    if found is None:
        raise TypeError("the inputs have no norm: see applies_to")
    x = found.double()
    with torch.no_grad():
        outputs = problem.forward(problem.params, batch.inputs).double().flatten(1).to(x.device)
    flat, sides = x.flatten(1), x.shape[2:]
    pixels = x.norm(dim=1).flatten(1) if x.dim() > 2 else flat.norm(dim=1, keepdim=True)
    columns = torch.stack([flat.norm(dim=1), flat.abs().amax(1), pixels.amax(1), outputs.norm(dim=1)], 1).cpu()
    side = math.prod(sides) ** (1 / max(1, len(sides)))
    shape = torch.tensor([x[0].numel(), side, outputs[0].numel()], dtype=torch.float64)
    return torch.cat([columns, shape.expand(len(x), 3)], 1).numpy()


def first_floating(inputs: Any) -> Tensor | None:
    """The first floating-point tensor among the inputs, or ``None``."""
    if isinstance(inputs, Tensor):
        return inputs if inputs.is_floating_point() else None
    values = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list | tuple) else ()
    return next((found for value in values if (found := first_floating(value)) is not None), None)


def applies_to(problem: Problem) -> str | None:
    """There must be a floating-point input."""
    if first_floating(problem.batch([0]).inputs) is None:
        return "the inputs are integers (token numbers), which have no norm"
    return None
