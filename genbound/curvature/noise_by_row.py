r"""Independent Gaussian weight noise for every row of a batch, without a copy of the weights for each.

For :math:`z = W\tilde x` on the T positions of a sample, noise U with independent :math:`\mathcal N(0, \sigma^2)`
entries moves z by :math:`\sigma\,\tilde X G`, a Gaussian matrix with covariance :math:`\tilde X\tilde X^\top` between
positions and independent columns. Where T is smaller than the number of inputs, the same distribution is :math:`\sigma
R g` with :math:`RR^\top = \tilde X\tilde X^\top` (Cholesky) and ``T x out`` normals instead of ``in x out``.
:math:`\tilde X` are the inputs that the noise in earlier layers has already moved. Both R and g are continuous
functions of what they come from, so that an antithetic pair :math:`\pm\sigma` sees the same noise but for the sign, up
to the small change of R. The pair shares one pass.

The forward pass is watched at the level of executed operations (:mod:`genbound.network.weight_watch`); a weight that is
used otherwise than once, by a linear map or a convolution, is not handled here (see :func:`can_move_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genbound.curvature.sweep import Sweep
from genbound.estimators.gram_root import gram_root, gram_root_derivative
from genbound.estimators.random import BLOCK, generator, grouped, is_host, row_normals
from genbound.network.memory import saved_on
from genbound.network.weight_uses import ConvolutionUse, LinearUse
from genbound.network.weight_watch import WeightedFunctions, WeightWatch, act_once

if TYPE_CHECKING:
    from genbound.network.layers import Layer
    from genbound.network.problem import Problem
    from genbound.network.weight_uses import Use

# A row of a noisy batch: which sample, and which member of which stream of normals moves its weights.
NoisyRow = tuple[int, tuple, int]
# ``(layer, positions, width) -> [rows, positions, width]``.
Draw = Callable[[str, int, int], Tensor]
# What a sweep takes while it is made and carried, in what autograd would save of the pass: 2.8 in tensors on ViT-B and
# BERT-base. What the allocator holds beside them is a fifth of it, between passes with noise and sweeps in turns.
SWEEPS = 4
DRAWING = 15  # operations of a pass that one normal takes, which serves ten of them


# -- normals ----------------------------------------------------------------------------------------------------------


class Normals:
    """Standard normals of every layer for the rows of one batch; each is drawn once and kept for the next pass.

    One stream a layer and group of ``BLOCK`` rows, or a layer and row on accelerators, which make them themselves.
    Position by position: more padding only continues it.

    Args:
        rows: of the batch.
        seed: of all streams.
        like: layer -> weight, whose type and device its normals have.
    """

    def __init__(self, rows: Sequence[NoisyRow], seed: int, like: Mapping[str, Tensor]):
        self._rows, self._groups = rows, grouped([(key, member) for _, key, member in rows])
        self._num, self._seed, self._like, self._known = len(rows), seed, like, {}

    def __call__(self, name: str, positions: int, width: int) -> Tensor:
        """``[rows, positions, width]``."""
        if name in self._known:
            return self._known[name]
        like = self._like[name]
        if not is_host(like.device):
            rows = [(key, member) for _, key, member in self._rows]
            self._known[name] = row_normals(rows, self._seed, name, positions, width, like)
        else:
            drawn = [
                (places, members, torch.randn(positions, BLOCK, width, generator=generator(self._seed, *key, name)))
                for key, (places, members) in self._groups.items()
            ]
            if len(drawn) == 1 and drawn[0][1] == list(range(BLOCK)):  # a whole group in its order, the common case
                found = drawn[0][2].transpose(0, 1)
            else:
                found = torch.empty(self._num, positions, width)
                for places, members, normals in drawn:
                    found[places] = normals[:, members].transpose(0, 1)
            self._known[name] = found.to(device=like.device, dtype=like.dtype)
        return self._known[name]


def _weight_normals(layer: Layer, normals: Draw, rows: int) -> Tensor:
    """One for each entry of the weight, ``[rows, *shape]``."""
    return normals(layer.name, 1, math.prod(layer.shape)).view(rows, *layer.shape)


def _patch_normals(layer: Layer, use: ConvolutionUse, normals: Draw, shape: torch.Size) -> Tensor:
    """One for each entry of a convolution's result of this shape, ``[rows, groups, T, out / groups]``."""
    g = normals(layer.name, math.prod(shape[2:]), layer.shape[0])
    return g.unflatten(2, (use.groups, -1)).transpose(1, 2)


def _needs_weights(layer: Layer, use: Use, shape: torch.Size) -> bool:
    """Whether noise is drawn on the layer's weights, not on their action on the inputs, for a result of this shape.

    Where both can be done, what takes fewer products does.
    """
    if isinstance(use, LinearUse):
        return _is_cheaper(use.num_positions, use.inputs.shape[-1], shape[-1])
    if use.transposed or len(shape) != 4 or shape[0] != use.num:
        return True
    return _is_cheaper(math.prod(shape[2:]), math.prod(layer.shape[1:]), layer.shape[0] // use.groups)


def _is_cheaper(positions: int, inputs: int, outputs: int) -> bool:
    """Whether ``X G`` is cheaper than ``R g``, by the products with a draw's numbers and those that make R."""
    weights = 2 * positions * inputs * outputs + DRAWING * inputs * outputs
    root = positions**2 * (2 * inputs + positions / 3 + 2 * outputs) + DRAWING * positions * outputs
    return positions >= inputs or weights < root


def _patches(layer: Layer, use: ConvolutionUse, x: Tensor) -> Tensor:
    """What the taps of every position see, ``[N, groups, T, in / groups * taps]``."""
    patches = F.unfold(x, layer.shape[2:], use.dilation, use.padding, use.stride)
    return patches.unflatten(1, (use.groups, -1)).mT


# -- noise in a running pass ------------------------------------------------------------------------------------------


class RowNoise:
    """What each row's own noisy weights add to the layers' results.

    The batch holds some rows, repeated once for every sigma.

    Args:
        rows: before they are repeated.
        normals: standard normals of every layer for those rows.
        sigmas: standard deviations, with signs, one for each repetition, in the weights' unit.

    Attributes:
        moved: names of the layers that were met, once for each time.
    """

    def __init__(self, rows: int, normals: Draw, sigmas: Sequence[float]):
        self._rows, self._normals, self._sigmas = rows, normals, list(sigmas)
        self._inputs: Tensor | None = None  # of the last factor: queries, keys and values share theirs
        self._factor: Tensor | None = None
        self.moved: list[str] = []

    def visit(self, func: Any, args: Sequence, kwargs: Mapping[str, Any], found: tuple[Layer, Use] | None) -> Any:
        """Run an operation, and add the noise to its result if it applies a layer's weight."""
        out = func(*args, **kwargs)
        if found is not None:
            layer, use = found
            self.moved.append(layer.name)
            self.move(layer, use, out)
        return out

    def move(self, layer: Layer, use: Use, out: Tensor) -> None:
        """Add the layer's noise to ``out``, what its weight has made of ``use.inputs``, in place."""
        if isinstance(use, LinearUse):
            self._move_linear(layer, use, out.view(-1, out.shape[-1]))
        else:
            self._move_convolution(layer, use, out)

    def _move_linear(self, layer: Layer, use: LinearUse, out: Tensor) -> None:
        if _needs_weights(layer, use, out.shape):
            noise = _weight_normals(layer, self._normals, self._rows)
            left, right = use.inputs, noise if use.transposed else noise.mT
        else:
            left, right = self._root(use.inputs), self._normals(layer.name, use.num_positions, out.shape[-1])
        out = use.per_position(out)
        for rows, sigma in self._repetitions():
            out[rows].baddbmm_(left[rows], right, alpha=sigma)

    def _move_convolution(self, layer: Layer, use: ConvolutionUse, out: Tensor) -> None:
        if _needs_weights(layer, use, out.shape):
            noise = _weight_normals(layer, self._normals, self._rows)
            out.add_(use.perturb(torch.cat([sigma * noise for sigma in self._sigmas])))
            return
        g = _patch_normals(layer, use, self._normals, out.shape)
        root = self._root(_patches(layer, use, use.inputs))
        for rows, sigma in self._repetitions():
            out[rows].add_((root[rows] @ g).mT.reshape(out[rows].shape), alpha=sigma)

    def _repetitions(self) -> list[tuple[slice, float]]:
        return [(slice(i * self._rows, (i + 1) * self._rows), sigma) for i, sigma in enumerate(self._sigmas)]

    def _root(self, x: Tensor) -> Tensor:
        """``R`` with ``R R^T = X X^T``, lower triangular, ``[..., T, T]``."""
        if self._inputs is None or not _same_memory(self._inputs, x):
            self._inputs, self._factor = x, gram_root(x)
        return self._factor


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def noisy_losses(problem: Problem, rows: Sequence[NoisyRow], normals: Normals, sigmas: Sequence[float]) -> Tensor:
    """Loss of every row at its own ``W + sigma U`` for every sigma, in one pass.

    Args:
        problem: one that :func:`can_move_rows`.
        rows: the samples, and where the noise of each comes from.
        normals: of those rows.
        sigmas: standard deviations, with signs, in the weights' unit.

    Returns:
        ``[sigmas, rows]`` in the loss's unit.

    Cost: a forward pass for each sigma, and for each linear layer on T positions about T / in of one more.
    """
    batch = problem.batch([position for position, _, _ in rows] * len(sigmas))
    noise = RowNoise(len(rows), normals, sigmas)
    outputs = _noisy_forward(problem, noise, batch.inputs, len(rows) * len(sigmas))
    if missed := _missed(problem, noise):
        raise RuntimeError(f"the noise was not added once to each layer: {', '.join(missed)}")
    with torch.no_grad():  # a loss of one's own may hold weights that want gradients
        return problem.loss.per_sample(outputs, batch.targets).view(len(sigmas), len(rows))


def can_move_rows(problem: Problem) -> bool:
    """Whether every layer acts once, as a linear map or a convolution on samples that share a pass; tried on a few."""
    if not act_once(problem):
        return False

    def zeros(name: str, positions: int, width: int) -> Tensor:
        return problem.params[name].new_zeros(2, positions, width)

    noise = RowNoise(2, zeros, [0.0])
    _noisy_forward(problem, noise, problem.batch([0, 0]).inputs, 2)
    return not _missed(problem, noise)


def row_bytes(problem: Problem) -> int:
    """What noise and a sweep take for a row of a batch, on all devices together, in bytes (:func:`row_bytes_on`)."""
    return sum(row_bytes_on(problem).values())


def row_bytes_on(problem: Problem) -> dict[torch.device, int]:
    """What noise and a sweep take on each device for a row of a batch of the longest sample, in bytes.

    The sweep, its row's normals, which stay from sigma to sigma, and what they add to the layers' results
    (:func:`noise_directions`).

    Args:
        problem: one that :func:`can_move_rows`.

    Cost: a forward pass of one sample, and one with noise.
    """
    last = problem.num_samples - 1  # in order of length
    saved = saved_on(problem, [last], problem.samples_first)
    found = {device: SWEEPS * saved.get(device, 0) for device in problem.placement.devices}

    def zeros(name: str, positions: int, width: int) -> Tensor:
        weight = problem.params[name]
        found[weight.device] += 2 * positions * width * problem.dtype.itemsize
        return weight.new_zeros(()).expand(1, positions, width)

    _noisy_forward(problem, RowNoise(1, zeros, [0.0]), problem.batch([last]).inputs, 1)
    return found


def _noisy_forward(problem: Problem, noise: RowNoise, inputs: Any, num: int) -> Tensor:
    """The outputs for ``num`` rows of inputs, repetitions included."""
    with torch.no_grad(), WeightedFunctions(WeightWatch(problem, num, noise.visit)):
        return problem.forward(problem.params, inputs)


def _missed(problem: Problem, noise: RowNoise) -> list[str]:
    """The layers that were not moved exactly once."""
    wanted = sorted(layer.name for layer in problem.layers if layer.kind != "unused")
    if sorted(noise.moved) == wanted:
        return []
    return sorted(set(wanted).symmetric_difference(noise.moved) or set(noise.moved))


# -- noise as directions of a sweep -----------------------------------------------------------------------------------


def noise_directions(sweep: Sweep, normals: Normals) -> tuple[dict[str, Tensor], dict[str, Callable[[Tensor], Tensor]]]:
    """What the same normals at sigma = 1 add to the layers' results on a sweep.

    And how that changes with the layers' inputs.

    Args:
        sweep: of the samples that the normals are for, in their order.
        normals: of those rows.

    Returns:
        Layer -> what is added, in the shape and unit of its result; and layer -> function from the tangent of its input
        to the derivative of what is added, because the noise that :class:`RowNoise` adds is drawn at the inputs that
        earlier layers have already moved. Its mean effect is zero.
    """
    noise = RowNoise(len(sweep), normals, [1.0])
    layers, found, bends, known = {layer.name: layer for layer in sweep.problem.layers}, {}, {}, _Roots()
    for name in sweep.starts:
        use, shape = sweep.uses[name], sweep.shape(name)
        found[name] = sweep.outputs.new_zeros(shape, device=sweep.steps[sweep.starts[name]].device)
        noise.move(layers[name], use, found[name])
        if isinstance(use, LinearUse):
            bends[name] = partial(_bend_linear, layers[name], use, normals, known, shape)
        else:
            bends[name] = partial(_bend_convolution, layers[name], use, normals, shape)
    return found, bends


class _Roots:
    """The last derivative of a Cholesky factor: queries, keys and values share theirs."""

    def __init__(self):
        self._tangent: Tensor | None = None
        self._derivative: Tensor | None = None

    def __call__(self, use: LinearUse, tangent: Tensor) -> Tensor:
        """``[N, T, T]`` for a tangent of the inputs."""
        last = self._tangent
        if last is None or last.data_ptr() != tangent.data_ptr() or last.shape != tangent.shape:
            moved = use.per_position(tangent)
            self._tangent, self._derivative = tangent, gram_root_derivative(use.root(), use.inputs, moved)
        return self._derivative


def _bend_linear(
    layer: Layer, use: LinearUse, normals: Normals, roots: _Roots, shape: torch.Size, tangent: Tensor
) -> Tensor:
    if _needs_weights(layer, use, shape):
        moved = replace(use, inputs=use.per_position(tangent))
        return moved.perturb(_weight_normals(layer, normals, len(use.inputs)))
    return use.spread(normals(layer.name, use.num_positions, shape[-1]), roots(use, tangent))


def _bend_convolution(
    layer: Layer, use: ConvolutionUse, normals: Normals, shape: torch.Size, tangent: Tensor
) -> Tensor:
    if _needs_weights(layer, use, shape):
        return replace(use, inputs=tangent).perturb(_weight_normals(layer, normals, use.num))
    patches = _patches(layer, use, use.inputs)
    change = gram_root_derivative(gram_root(patches), patches, _patches(layer, use, tangent))
    return (change @ _patch_normals(layer, use, normals, shape)).mT.reshape(shape)
