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


def probe_directions(
    layers: Mapping[str, tuple[tuple[int, ...], Sequence[Use]]], rows: Sequence[Row], seed: int, like: Tensor
) -> dict[str, list[Tensor]]:
    """Perturbations of the layers' results by random weights of every row's own.

    A layer that acts once, as a linear map on fewer positions than it has inputs, gets exact independent signs where
    they act (:meth:`~genbound.network.weight_uses.LinearUse.spread`); any other a :class:`Probe`.

    Args:
        layers: name -> (shape of the weight, its uses in the pass).
        rows: where the random numbers of each of the N rows of the pass come from.
        seed: of all of them.
        like: whose type and device the perturbations have.

    Returns:
        name -> a perturbation for each use, in the shape of its result z: that of weights of variance 1.
    """
    found = {}
    for name, (shape, uses) in layers.items():
        use = uses[0]
        if len(uses) == 1 and isinstance(use, LinearUse) and use.num_positions < use.inputs.shape[-1]:
            outputs = shape[1] if use.transposed else shape[0]
            found[name] = [use.spread(row_signs(rows, seed, name, use.num_positions, outputs, like))]
        else:
            probe = make_probe(shape, row_signs(rows, seed, name, 1, num_signs(shape), like)[:, 0])
            found[name] = [probe.perturb(use) for use in uses]
    return found
