"""The network's outputs where every sample has its own weights, and its derivative in those weights.

By default all samples of a batch go through one vectorised pass (``torch.func.vmap``). A network that cannot be
vectorised, or gives other outputs so, is run sample by sample: slower, and the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from genbound.data.sample_parts import map_tensors

if TYPE_CHECKING:
    from genbound.data.samples import Batch
    from genbound.network.problem import Problem
    from genbound.posterior.groups import Group

Moved = Mapping[str, Tensor]


class PlainBatchNorm(TorchFunctionMode):
    """Batch normalisation by its formula: torch's has no derivative in the running statistics."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function not in (torch.batch_norm, F.batch_norm):
            return function(*args, **(kwargs or {}))
        return _batch_norm(*args, **(kwargs or {})) if function is F.batch_norm else _as_torch_calls_it(*args)


def _batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if training or mean is None:  # by the batch's own statistics, which are no buffers
        return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1, *[1] * (x.dim() - 2))
    return x * scale.view(shape) + shift.view(shape)


def _as_torch_calls_it(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any) -> Tensor:
    return _batch_norm(x, mean, var, weight, bias, training, *rest[:2])


class MovedNetwork:
    """The network as a function of the tensors of some groups.

    Args:
        problem: what is run.
        groups: the tensors that each sample has its own of; the others are the fine-tuned ones.

    Attributes:
        vectorised: several samples share a pass.
    """

    def __init__(self, problem: Problem, groups: Sequence[Group]):
        self._problem = problem
        self._buffers = {group.name for group in groups if group.is_buffer}
        self.vectorised = self._agrees(groups)

    def outputs(self, inputs: Any, moved: Moved) -> Tensor:
        """Scores ``[N, ...]`` of N samples.

        Args:
            inputs: of a batch.
            moved: name -> ``[N, *shape]``, the tensors of each sample.
        """
        with torch.no_grad():
            return self._each(self._one, inputs, moved)

    def pulled_back(self, inputs: Any, tuned: Moved, cotangents: Tensor) -> dict[str, Tensor]:
        """Derivatives of the outputs in the groups' tensors, every sample for itself.

        Args:
            inputs: of a batch of N samples.
            tuned: name -> ``[*shape]``, where they are taken.
            cotangents: ``[N, R, *output]``, R directions in the output.

        Returns:
            Name -> ``[N, R, *shape]``.

        Cost: a forward pass, and R backward passes to the groups' tensors.
        """

        def one(sample: Any, directions: Tensor) -> dict[str, Tensor]:
            _, pull = vjp(lambda weights: self._one(sample, weights), dict(tuned))
            return vmap(lambda direction: pull(direction)[0])(directions)

        return self._each(one, inputs, cotangents)

    def _one(self, sample: Any, moved: Moved) -> Tensor:
        """Scores of one sample, without the batch axis."""
        problem = self._problem
        params = {**problem.params, **{n: t for n, t in moved.items() if n not in self._buffers}}
        buffers = {**problem.buffers, **{n: t for n, t in moved.items() if n in self._buffers}}
        with PlainBatchNorm() if self._buffers else contextlib.nullcontext():
            return problem.forward(params, map_tensors(sample, lambda t: t.unsqueeze(0)), buffers).squeeze(0)

    def _each(self, function: Callable[[Any, Any], Any], inputs: Any, other: Any) -> Any:
        if self.vectorised:
            return vmap(function)(inputs, other)
        num = len(other) if isinstance(other, Tensor) else len(next(iter(other.values())))
        found = [
            function(
                map_tensors(inputs, lambda t, i=i: t[i]),
                other[i] if isinstance(other, Tensor) else {name: t[i] for name, t in other.items()},
            )
            for i in range(num)
        ]
        if isinstance(found[0], Tensor):
            return torch.stack(found)
        return {name: torch.stack([row[name] for row in found]) for name in found[0]}

    def _agrees(self, groups: Sequence[Group]) -> bool:
        """Whether a vectorised pass gives what samples alone give, tried with other weights for each of two."""
        problem = self._problem
        batch: Batch = problem.batch(problem.shared_run(2))
        stream = torch.Generator().manual_seed(0)

        def nearby(tensor: Tensor) -> Tensor:
            noise = torch.randn(len(batch), *tensor.shape, generator=stream).to(tensor)
            return tensor + 1e-3 * tensor.abs().mean() * noise

        moved = {group.name: nearby(group.tuned) for group in groups}
        self.vectorised = False
        alone = self.outputs(batch.inputs, moved)
        self.vectorised = True
        try:
            together = self.outputs(batch.inputs, moved)
        except Exception:  # an operation without a vectorised form raises whatever it does
            return False
        close = 1e-4 if problem.dtype == torch.float32 else 1e-8
        return torch.allclose(alone, together, rtol=close, atol=close * float(alone.abs().max() + 1e-30))


def worst_if_not_finite(values: Tensor, outputs: Tensor, worst: float) -> np.ndarray:
    """The values of every sample ``[N]``; the worst there can be where the network gave no finite number."""
    finite = outputs.isfinite().flatten(1).all(1)
    return torch.where(finite, values.double(), worst).clamp(0.0, worst).cpu().numpy()
