r"""The quadratic forms as the published scripts compute them, ``max_quadratic_form`` with ``convention="paper-code"``.

The loss is the mean over a batch of ``paper_batch_size`` samples. The form is :math:`v_i \cdot (Hv)_i` with the joint
displacement of all layers, so that cross-layer blocks leak in. Nothing is truncated, the maximum is over batches, and
the displacement of a head is its whole weight. The loss's range is the largest mean loss of a batch.

The scripts for images go through the test data, those for texts through the training data; both stop after the batch
with which they have seen more than 100 samples (images) or batches (texts). Here ``paper_split`` chooses, and as many
samples are used as are measured (``--samples``), the first ones.

References:
    The scripts ``compute_hessian_measures.py`` beside Ju, Li & Zhang, ICML 2022, which were read.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from genbound.data.samples import Batch
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, plain, stack
from genbound.quantities.catalogue.max_quadratic_form import MaxQuadraticFormOptions


def measure_as_published(problem: Problem, context: Context) -> Measured:
    """Maxima over means of batches, and the largest mean loss."""
    options: MaxQuadraticFormOptions = context.options
    displacement = {
        layer.name: (problem.params if layer.name in problem.head else problem.displacement)[layer.name]
        for layer in problem.layers
    }
    split, why = _split(problem, options)
    batches = list(_batches(problem, split, options.paper_batch_size))
    parts = context.map(f"{split} batches", batches, lambda batch: _batch_forms(problem, displacement, batch))
    values, losses = stack(parts, "value"), stack(parts, "loss")
    rows = {}
    for i, name in enumerate(displacement):
        largest = plain(values[:, i].max())
        rows[name] = {
            "value": largest, "lower": largest, "upper": largest, "sample": None, "batch": int(values[:, i].argmax()),
        }  # fmt: skip
    size, largest_loss = options.paper_batch_size, plain(losses.max())
    note = (
        f"convention of the published scripts: maximum over means of batches of {size} {split} samples"
        f"{why}, joint displacement of all layers, no truncation, "
        f"C = {largest_loss:.3g} the largest mean loss of a batch; not the theorem's quantity"
    )
    return Measured(
        {
            "layers": rows, "convention": "paper-code", "batch_size": size, "split": split,
            "num_samples": sum(map(len, batches)), "loss_range": largest_loss, "note": note,
        }
    )  # fmt: skip


def _split(problem: Problem, options: MaxQuadraticFormOptions) -> tuple[str, str]:
    """``train`` or ``test``, and why it is not the split of the scripts, if it is not."""
    inputs = problem.batch([0]).inputs
    images = isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.is_floating_point()
    wanted = ("test" if images else "train") if options.paper_split == "auto" else options.paper_split
    if wanted == "test" and problem.test_data is None:
        return "train", " (there are no test data, whose batches the scripts take)"
    return wanted, ""


def _batches(problem: Problem, split: str, size: int) -> Iterator[Batch]:
    """The first samples of the split, as many as are measured, on the problem's device."""
    if split == "train":
        yield from (problem.batch(run) for run in problem.batches(range(problem.num_samples), size))
    elif problem.test_data is not None:
        count = min(len(problem.test_data), problem.num_samples)
        yield from (problem.to_device(batch) for batch in problem.test_data.batches(range(count), size))


def _batch_forms(problem: Problem, displacement: dict[str, Tensor], batch: Batch) -> Part:
    r""":math:`v_i \cdot (Hv)_i` of every layer ``[1, L]``, H the Hessian of a batch's mean loss, and that loss ``[1]``.

    v is the joint displacement.
    """
    weights = {name: problem.params[name].detach().requires_grad_() for name in displacement}
    with torch.enable_grad():
        outputs = problem.forward({**problem.params, **weights}, batch.inputs)
        loss = problem.loss.per_sample(outputs, batch.targets).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
        pairs = zip(gradients, displacement.values(), strict=True)
        inner = sum((g * v).sum().to(loss.device) for g, v in pairs if g is not None)
    forms = [0.0] * len(displacement)
    if isinstance(inner, Tensor) and inner.requires_grad:
        products = torch.autograd.grad(inner, list(weights.values()), allow_unused=True)
        forms = [
            0.0 if hv is None else float((v.double() * hv.double()).sum())
            for v, hv in zip(displacement.values(), products, strict=True)
        ]
    return {"value": np.array([forms]), "loss": np.array([float(loss.detach())])}
