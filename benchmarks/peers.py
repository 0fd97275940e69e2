"""The tools that genbound is compared with, each called as its own documentation says.

curvlinops: ``HessianLinearOperator`` over the layers' weights, multiplied by several vectors at once as its own
``hutchinson_trace``, ``hutchpp_trace`` and ``xtrace`` do; how many products each of them needs follows from the same
vectors (``rows.py``). hessian-eigenthings: products of its ``HessianOperator``, which its Hutch++ and its Lanczos take
one at a time. PyHessian: ``hessian(...).trace``; its stopping rule is replaced by a fixed budget (``tol = 0``), because
as released it stops by chance. The published scripts: one shared one-sided draw of weight noise for each pass
over the data.
"""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genbound.network.forward import call_arguments, scores


class Plain(nn.Module):
    """The model from one batch of inputs to scores, as the peers want it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.eval()

    def forward(self, inputs) -> Tensor:
        args, kwargs = call_arguments(inputs)
        return scores(self.model(*args, **kwargs))


class Inputs(dict):
    """A dict of tensors that knows where it is and how many samples it holds, as PyHessian and curvlinops ask."""

    def to(self, device) -> Inputs:
        return Inputs({name: tensor.to(device) for name, tensor in self.items()})

    def size(self, *axis):
        return next(iter(self.values())).size(*axis)


def batches(problem) -> list[tuple]:
    found = []
    for positions in problem.batches(range(problem.num_samples)):
        batch = problem.batch(positions)
        inputs = Inputs(batch.inputs) if isinstance(batch.inputs, dict) else batch.inputs
        found.append((inputs, batch.targets))
    return found


@contextlib.contextmanager
def plain_attention():
    """Every peer needs it: the fused kernel has no second derivative on the CPU."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def curvlinops_hessian(problem):
    """curvlinops' Hessian of the mean loss over the measured samples, in the weights of the layers."""
    from curvlinops import HessianLinearOperator

    model = Plain(problem.model)
    names = {layer.name for layer in problem.layers}
    params = {}
    for name, p in model.named_parameters():
        p.requires_grad_(name.removeprefix("model.") in names)
        if p.requires_grad:
            params[name] = p
    data = batches(problem)
    return HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(params.values()), data, check_deterministic=False,
        num_data=problem.num_samples, batch_size_fn=lambda x: x.size(0),
    )  # fmt: skip


def eigenthings_hessian(problem, method: str = "autograd"):
    """hessian-eigenthings' Hessian of the mean loss over the measured samples, in the weights of the layers.

    It takes the mean over batches, which are not all of one size.
    """
    from hessian_eigenthings import HessianOperator

    model, data = Plain(problem.model), batches(problem)
    names = {f"model.{layer.name}" for layer in problem.layers}
    for p in model.parameters():
        p.requires_grad_(True)

    def loss(model, batch) -> Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs), targets, reduction="sum") * len(data) / problem.num_samples

    return HessianOperator(model, data, loss, param_filter=lambda name, p: name in names, method=method)


def pyhessian_trace(problem, probes: int) -> list[float]:
    """PyHessian's probes ``z^T H z`` of the same Hessian."""
    from pyhessian import hessian

    model = Plain(problem.model)
    names = {layer.name for layer in problem.layers}
    for name, p in model.named_parameters():
        p.requires_grad_(name.removeprefix("model.") in names)
    with plain_attention():
        tool = hessian(model, nn.CrossEntropyLoss(), dataloader=batches(problem), cuda=False)
        return tool.trace(maxIter=probes, tol=0.0)


def shared_one_sided(problem, sigma: float, draw: int) -> float:
    """The published scripts' way: one draw of noise on the weights, added for a whole pass over the data."""
    generator = torch.Generator().manual_seed(draw)
    moved = {
        layer.name: problem.params[layer.name] + sigma * torch.randn(layer.shape, generator=generator)
        for layer in problem.layers
    }
    losses = []
    with torch.no_grad():
        for positions in problem.batches(range(problem.num_samples)):
            batch = problem.batch(positions)
            outputs = problem.forward({**problem.params, **moved}, batch.inputs)
            losses.append(problem.loss.per_sample(outputs, batch.targets).numpy())
    return float(np.concatenate(losses).mean())


def lanczos_products(problem, name: str, position: int, tolerance: float, most: int) -> int:
    """Products that plain Lanczos on one sample's own block takes.

    It stops as soon as ``v^T H^+ v`` by Gauss quadrature moves by less than ``tolerance`` of itself.
    """
    from genbound.curvature.layer_block import LayerBlock
    from genbound.estimators.lanczos import Lanczos

    operator = LayerBlock(problem.tape([position], [name]), name)
    run = Lanczos(operator.product, operator.start(problem.displacement[name]))
    before = None
    for step in range(1, most + 1):
        run.step(operator.precision)
        value = run.positive_part(0)
        if before is not None and abs(value - before) <= tolerance * abs(value) or run.ended(0):
            return step
        before = value
    return most
