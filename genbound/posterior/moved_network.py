"""The network's outputs where every sample has its own weights, and its derivative in those weights.

Of some large weights a sample does not have its own copy, only what noise on them does to it
(:mod:`genbound.posterior.acting_noise`).

By default all samples of a batch, which are of one size, go through one vectorised pass (``torch.func.vmap``). A
network that cannot be vectorised, or gives other outputs so, is run sample by sample: slower, and the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from genbound.data.sample_parts import map_tensors
from genbound.network.refusals import is_not_vectorised
from genbound.posterior.acting_noise import ActingNoise, Action, NudgedResults, Roots, WeightCalls

if TYPE_CHECKING:
    from genbound.data.samples import Batch, Samples
    from genbound.network.problem import Problem
    from genbound.posterior.groups import Group

Moved = Mapping[str, Tensor]
TRIED = 256  # samples among which two of one size are looked for, to try them together


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
        may_act: groups that may be moved by standard normals of what noise does to a sample, where that takes less
            than half as many numbers as the tensor has.

    Attributes:
        vectorised: several samples share a pass.
        acting: groups for which it does -> how they act on the longest sample.
        numbers: that move the longest sample, of all groups; products of factors are counted as well.
    """

    def __init__(self, problem: Problem, groups: Sequence[Group], may_act: Collection[str] = ()):
        self._problem = problem
        self._buffers = {group.name for group in groups if group.is_buffer}
        self._known: dict[Hashable, dict[str, Action]] = {}
        actions: dict[str, Action] = {}
        self._factors = {group.weight: group.factors for group in groups if group.factors is not None}
        params = problem.params
        # A bias goes into the call of its weight, where it would be taken for a second one.
        names = [g.name for g in groups if g.name in may_act and g.name in params and params[g.name].dim() > 1]
        candidates = {name: params[name] for name in names}
        if candidates:
            longest = max(range(len(problem.data)), key=problem.data.size)
            inputs = problem.to_device(problem.data.batch([longest])).inputs
            actions = self._watched(candidates, inputs)
            actions = {name: act for name, act in actions.items() if 2 * act.size <= candidates[name].numel()}
        self.acting = actions
        self.numbers = sum(group.size for group in groups if group.name not in actions)
        self.numbers += sum(act.size for act in actions.values()) + sum(params[name].numel() for name in self._factors)
        self.vectorised = self._agrees(groups)

    def actions(self, inputs: Any) -> dict[str, Action]:
        """How every acting group acts on a sample of a batch."""
        if not self.acting:
            return {}
        shapes = tuple(t.shape[1:] for t in _tensors(inputs))
        if shapes not in self._known:
            self._known[shapes] = self._watched(self._weights, map_tensors(inputs, lambda t: t[:1]))
        return self._known[shapes]

    def outputs(self, inputs: Any, moved: Moved, roots: Roots | None = None) -> Tensor:
        """Scores ``[N, ...]`` of N samples.

        Args:
            inputs: of a batch.
            moved: name -> ``[N, *shape]``, the tensors of each sample; of an acting group its normals ``[N, T, out]``.
            roots: acting group -> root of the covariance of a row of its noise.
        """

        def one(sample: Any, own: Moved) -> Tensor:
            return self._one(sample, own, ActingNoise(self._weights, own, roots or {}))

        with torch.no_grad():
            return self._each(one, inputs, moved)

    def pulled_back(self, inputs: Any, tuned: Moved, cotangents: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Derivatives of the outputs in the groups' tensors, every sample for itself.

        Args:
            inputs: of a batch of N samples.
            tuned: name -> ``[*shape]``, where they are taken, of the groups that are not acting.
            cotangents: ``[N, R, *output]``, R directions in the output.

        Returns:
            Name -> ``[N, R, *shape]``; of an acting group the derivative in its results, ``[N, R, T, out]``. And acting
            group -> what its weight is applied to, ``[N, T, in]`` (of an embedding numbers ``[N, T]``).

        Cost: a forward pass, and R backward passes to the groups' tensors.
        """
        acts = self.actions(inputs).items()
        results = {name: self._problem.params[name].new_zeros(act.positions, act.width) for name, act in acts}

        def one(sample: Any, directions: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            def outputs(own: Moved) -> tuple[Tensor, dict[str, Tensor]]:
                nudged = NudgedResults(self._weights, own)
                return self._one(sample, own, nudged), nudged.rows

            _, pull, rows = vjp(outputs, {**tuned, **results}, has_aux=True)
            return vmap(lambda direction: pull(direction)[0])(directions), rows

        return self._each(one, inputs, cotangents)

    @property
    def _weights(self) -> dict[str, Tensor]:
        return {name: self._problem.params[name] for name in self.acting}

    def _one(self, sample: Any, moved: Moved, watch: WeightCalls) -> Tensor:
        """Scores of one sample, without the batch axis; the watch sees to the acting groups."""
        problem = self._problem
        own = {name: tensor for name, tensor in moved.items() if name not in self.acting}
        params = {**problem.params, **{n: t for n, t in own.items() if n in problem.params}}
        for name, (left, right) in self._factors.items():
            product = own.get(f"{name}.left", left) @ own.get(f"{name}.right", right)
            params[name] = problem.init[name] + product
        buffers = {**problem.buffers, **{n: t for n, t in own.items() if n in self._buffers}}
        with PlainBatchNorm() if self._buffers else contextlib.nullcontext():
            with watch if self.acting else contextlib.nullcontext():
                found = problem.forward(params, map_tensors(sample, lambda t: t.unsqueeze(0)), buffers)
        watch.check()
        return found.squeeze(0)

    def _watched(self, weights: Mapping[str, Tensor], inputs: Any) -> dict[str, Action]:
        """Of those of these weights that are applied once and in a way that noise can be added to."""
        calls = WeightCalls(weights)
        with torch.no_grad(), calls:
            self._problem.forward(self._problem.params, inputs)
        return {name: act for name, act in calls.actions.items() if calls.calls[name] == 1 and name not in calls.unread}

    def _each(self, function: Callable[[Any, Any], Any], inputs: Any, other: Any) -> Any:
        if self.vectorised:
            try:
                return self._together(function, inputs, other)
            except Exception as error:  # samples that are asked otherwise than those it was tried with
                if not is_not_vectorised(error):
                    raise
        return self._apart(function, inputs, other)

    def _apart(self, function: Callable[[Any, Any], Any], inputs: Any, other: Any) -> Any:
        """Sample by sample."""
        num = len(other) if isinstance(other, Tensor) else len(next(iter(other.values())))
        found = [
            function(
                map_tensors(inputs, lambda t, i=i: t[i]),
                other[i] if isinstance(other, Tensor) else {name: t[i] for name, t in other.items()},
            )
            for i in range(num)
        ]
        return _stacked(found)

    def _together(self, function: Callable[[Any, Any], Any], inputs: Any, other: Any) -> Any:
        """In one vectorised pass.

        A tensor that is the same for all samples belongs to none of them: models ask a mask whether it masks anything,
        which has no vectorised form.
        """
        same = [bool((t == t[:1]).all()) for t in _tensors(inputs)]
        dims, ones = iter(same), iter(same)
        shared = map_tensors(inputs, lambda _: None if next(dims) else 0)
        return vmap(function, in_dims=(shared, 0))(map_tensors(inputs, lambda t: t[0] if next(ones) else t), other)

    def _agrees(self, groups: Sequence[Group]) -> bool:
        """Whether a vectorised pass gives what samples alone give, tried with other weights for each of two."""
        problem = self._problem
        tried = batches_of_one_size(problem.data, problem.indices[:TRIED], 2)
        batch = problem.to_device(max(tried, key=len))
        stream = torch.Generator().manual_seed(0)

        def nearby(tensor: Tensor) -> Tensor:
            noise = torch.randn(len(batch), *tensor.shape, generator=stream).to(tensor)
            return tensor + 1e-3 * tensor.abs().mean() * noise

        moved = {group.name: nearby(group.tuned) for group in groups if group.name not in self.acting}
        roots = {}
        for name, act in self.actions(batch.inputs).items():
            weight = problem.params[name]
            moved[name] = torch.randn(len(batch), act.positions, act.width, generator=stream).to(weight)
            roots[name] = 1e-3 * weight.abs().mean()

        def one(sample: Any, own: Moved) -> Tensor:
            return self._one(sample, own, ActingNoise(self._weights, own, roots))

        with torch.no_grad():
            alone = self._apart(one, batch.inputs, moved)
            try:
                together = self._together(one, batch.inputs, moved)
            except Exception as error:
                if not is_not_vectorised(error):
                    raise
                return False
        close = 1e-4 if problem.dtype == torch.float32 else 1e-8
        return torch.allclose(alone, together, rtol=close, atol=close * float(alone.abs().max() + 1e-30))


def batches_of_one_size(samples: Samples, indices: Iterable[int], width: int) -> Iterator[Batch]:
    """Batches of samples that need no padding, which would give each of them a mask of its own.

    Args:
        samples: all of them.
        indices: the places of those that are wanted.
        width: most of them in a batch.
    """
    for _, run in groupby(sorted(indices, key=samples.size), key=samples.size):
        yield from samples.batches(list(run), width)


def _tensors(inputs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(inputs, lambda t: (found.append(t), t)[1])
    return found


def _stacked(found: Sequence[Any]) -> Any:
    """Tensors, or tuples and dicts of them, one for each sample, with a first axis in place of the list."""
    if isinstance(found[0], Tensor):
        return torch.stack(list(found))
    if isinstance(found[0], tuple):
        return tuple(_stacked(parts) for parts in zip(*found, strict=True))
    return {name: torch.stack([row[name] for row in found]) for name in found[0]}


def worst_if_not_finite(values: Tensor, outputs: Tensor, worst: float) -> np.ndarray:
    """The values of every sample ``[N]``; the worst there can be where the network or the loss gave no number."""
    finite = outputs.isfinite().flatten(1).all(1) & ~values.isnan()
    return torch.where(finite, values.double(), worst).clamp(0.0, worst).cpu().numpy()
