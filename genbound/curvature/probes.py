r"""Random weight directions, one for each sample, for the trace of every layer's block at once.

A probe ``Z`` with :math:`E[\mathrm{vec}Z\,\mathrm{vec}Z^\top] = I` gives :math:`E[Z^\top H Z] = \mathrm{Tr} H`. For
large matrices a probe of rank ``s``, :math:`Z = s^{-1/2} \sum_r b_r a_r^\top` with Rademacher ``a`` and ``b``, has that
property, needs ``s (in + out)`` random signs instead of ``in * out``, and is applied to the inputs of a linear layer
without being formed. It depends on the weight's shape alone, not on the padding of a batch. Its variance exceeds that
of independent signs by a term that falls as ``1/s``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from genbound.estimators.random import Row, row_signs
from genbound.network.weight_uses import LinearUse, Use

RANK = 8


@dataclass
class Probe:
    """Probes of one layer for N samples: full, or as their factors.

    Attributes:
        shape: of the weight as it is stored; its first axis are the rows, the others together the columns.
        full: ``[N, *shape]``, or ``None``.
        a: ``[N, s, columns]``, with the factor :math:`s^{-1/2}`.
        b: ``[N, s, rows]``.
    """

    shape: tuple[int, ...]
    full: Tensor | None
    a: Tensor | None = None
    b: Tensor | None = None

    def weight(self) -> Tensor:
        """The probes as weights, ``[N, *shape]``, without unit."""
        if self.full is not None:
            return self.full
        return torch.einsum("nsb,nsa->nba", self.b, self.a).view(-1, *self.shape)

    def perturb(self, use: Use) -> Tensor:
        """What they add to the result z of a use, in the shape of z."""
        if self.full is None and isinstance(use, LinearUse):
            return use.perturb_low_rank(self.a, self.b)
        return use.perturb(self.weight())


def _is_full(shape: tuple[int, ...]) -> bool:
    rows, columns = shape[0], math.prod(shape[1:])
    return rows * columns <= 2 * RANK * (rows + columns)


def num_signs(shape: tuple[int, ...]) -> int:
    """Random signs that one sample's probe of a weight of this shape takes."""
    rows, columns = shape[0], math.prod(shape[1:])
    return rows * columns if _is_full(shape) else RANK * (rows + columns)


def make_probe(shape: tuple[int, ...], signs: Tensor) -> Probe:
    """The probes of N samples for a weight of this shape, from their signs ``[N, num_signs(shape)]``."""
    if _is_full(shape):
        return Probe(shape, signs.reshape(-1, *shape))
    columns = math.prod(shape[1:])
    a = signs[:, : RANK * columns].reshape(-1, RANK, columns) / math.sqrt(RANK)
    return Probe(shape, None, a, signs[:, RANK * columns :].reshape(-1, RANK, shape[0]))


Layers = Mapping[str, tuple[Tensor, Sequence[Use]]]  # name -> weight, whose numbers are not read, its uses in the pass


def _acts_on_few(uses: Sequence[Use]) -> bool:
    """Whether a layer acts once, as a linear map on fewer positions than it has inputs."""
    use = uses[0]
    return len(uses) == 1 and isinstance(use, LinearUse) and use.num_positions < use.inputs.shape[-1]


def probe_signs(layers: Layers, rows: Sequence[Row], seed: int, like: Tensor) -> dict[str, Tensor]:
    """The random signs that :func:`perturbed` makes perturbations of, ``[N, ...]`` for every layer.

    Args:
        layers: what is moved.
        rows: where the random numbers of each of the N rows of the pass come from.
        seed: of all of them.
        like: whose type they have. They are on the devices of the weights.
    """
    found = {}
    for name, (weight, uses) in layers.items():
        shape, own = tuple(weight.shape), like.new_empty(0, device=weight.device)
        if _acts_on_few(uses):
            use = cast(LinearUse, uses[0])
            outputs = shape[1] if use.transposed else shape[0]
            found[name] = row_signs(rows, seed, name, use.num_positions, outputs, own)
        else:
            found[name] = row_signs(rows, seed, name, 1, num_signs(shape), own)[:, 0]
    return found


def perturbed(layers: Layers, signs: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Perturbations of the layers' results by random weights of every row's own.

    A layer that acts once, as a linear map on fewer positions than it has inputs, gets exact independent signs where
    they act (:meth:`~genbound.network.weight_uses.LinearUse.spread`); any other a :class:`Probe`.

    Returns:
        name -> a perturbation for each use, in the shape of its result z: that of weights of variance 1.
    """
    found = {}
    for name, (weight, uses) in layers.items():
        if _acts_on_few(uses):
            found[name] = [cast(LinearUse, uses[0]).spread(signs[name])]
        else:
            probe = make_probe(tuple(weight.shape), signs[name])
            found[name] = [probe.perturb(use) for use in uses]
    return found


def probe_directions(layers: Layers, rows: Sequence[Row], seed: int, like: Tensor) -> dict[str, list[Tensor]]:
    """The perturbations of :func:`perturbed`, by the signs of :func:`probe_signs`."""
    return perturbed(layers, probe_signs(layers, rows, seed, like))


def along_signs(shape: tuple[int, ...], uses: Sequence[Use], qs: Sequence[Tensor]) -> Tensor | None:
    r"""A gradient in the space of a layer's signs, ``[N, signs]``, whose norm is that of the gradient in the weight.

    Args:
        shape: of the weight.
        uses: of the layer.
        qs: gradients at the results of its uses.

    Returns:
        ``None`` for probes of low rank: of so large a weight no single entry counts.
    """
    if _acts_on_few(uses):
        use = cast(LinearUse, uses[0])
        return (use.root().mT @ use.per_position(qs[0])).flatten(1)
    if not _is_full(shape):
        return None
    weights = [use.adjoint(q) for use, q in zip(uses, qs, strict=True)]
    return torch.stack(weights).sum(0).flatten(1)
