r"""The Gauss-Newton curvature of the mean loss in each group: its trace, or its eigenvalues and eigenvectors.

Of a weight whose noise acts on results (:mod:`genbound.posterior.acting_noise`) it is the mean over outputs of the
blocks on the input side, ``[in, in]``: the noise has the same covariance for every output. With the derivative
:math:`\delta` in the results and the inputs X that is :math:`X^\top \delta\delta^\top X`; random signs s bring it down
to squares of :math:`X^\top\delta s`, of the same mean. Of an embedding it is a number for each row.

With :math:`\nabla_f^2 \ell = SS^\top` in the output and J the outputs' derivative in a group's tensor, the group's
block is the mean over samples of :math:`J^\top S S^\top J`, positive semidefinite. It only shapes the posterior, which
may be any Gaussian: an estimate from some samples costs tightness and no validity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from genbound.data.samples import Batch
from genbound.network.loss_functions import CROSS_ENTROPY, Loss
from genbound.posterior.gaussian import Spectrum
from genbound.posterior.moved_network import batches_of_one_size

if TYPE_CHECKING:
    from genbound.network.problem import Problem
    from genbound.posterior.groups import Group
    from genbound.posterior.moved_network import MovedNetwork

MOST_COLUMNS = 32  # of S that are all taken; of more, as many random combinations
MOST_NUMBERS = 1 << 26  # of the rows of one batch
SIGNS = 16  # combinations of a weight's outputs for each derivative in them; of no more outputs than that, each


@dataclass(frozen=True)
class Curvature:
    """Of one group.

    Attributes:
        spectrum: along the axes.
        axes: eigenvectors, one a column ``[d, d]``; ``None`` where every direction has the same curvature. Of an acting
            group those of a row, ``[in, in]``; ``None`` for an embedding, whose rows have a value each.
    """

    spectrum: Spectrum
    axes: Tensor | None = None


def measure_curvature(
    problem: Problem, network: MovedNetwork, groups: Sequence[Group], indices: Sequence[int], full: Collection[str],
    stream: torch.Generator, by_row: bool = True,
) -> dict[str, Curvature]:  # fmt: skip
    """The curvature of every group at the fine-tuned weights.

    Args:
        problem: whose loss and samples.
        network: as a function of the groups.
        groups: the tensors.
        indices: the samples that the mean is taken over, by their places in the data.
        full: groups whose whole block is wanted.
        stream: of random combinations, where the output has many coordinates, and of the results of acting groups.
        by_row: acting groups have the curvature along the axes of a row, not their trace alone.

    Cost: a forward pass and one backward pass for each output coordinate (:data:`MOST_COLUMNS` at most) over those
    samples, and an eigendecomposition for each whole block.
    """
    sums: dict[str, _Sum] = {group.name: _sum_of(group, network, group.name in full, by_row) for group in groups}
    tuned = {group.name: group.tuned for group in groups if group.name not in network.acting}
    for rows, inputs in _rows(problem, network, tuned, indices, stream):
        for name, found in rows.items():
            if name in inputs:
                sums[name].add(_pulled(found, inputs[name], problem.params[name], stream))
            else:
                sums[name].add(found.flatten(2).flatten(0, 1))
    return {group.name: sums[group.name].curvature(len(indices), group.tuned) for group in groups}


class _Sum:
    """Of squares of rows ``[.., d]``: along every axis together.

    Args:
        size: coordinates.
    """

    def __init__(self, size: int, device: torch.device):
        self._size, self._device, self._total = size, device, 0.0

    def add(self, rows: Tensor) -> None:
        """Count rows in."""
        self._total += float(rows.square().sum(dtype=torch.float64))

    def curvature(self, num: int, like: Tensor) -> Curvature:
        """Of the mean over ``num`` samples."""
        return Curvature(Spectrum.flat(self._total / num, self._size))


class _SumOfBlocks(_Sum):
    """Of outer products, along their own axes; ``copies`` of them have each block."""

    def __init__(self, size: int, device: torch.device, copies: int = 1):
        super().__init__(size, device)
        self._copies, self._block = copies, torch.zeros(size, size, device=device)

    def add(self, rows: Tensor) -> None:
        self._block += rows.T @ rows

    def curvature(self, num: int, like: Tensor) -> Curvature:
        values, axes = torch.linalg.eigh(self._block.double().cpu() / (num * self._copies))
        return Curvature(Spectrum.of(values.numpy(), self._copies), axes.to(like))


class _SumOfRows(_Sum):
    """Of squares for each entry of the rows, all of them seen as one axis of an embedding."""

    def __init__(self, size: int, device: torch.device, copies: int):
        super().__init__(size, device)
        self._copies, self._squares = copies, torch.zeros(size, device=device, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        self._squares += rows.square().sum(0, dtype=torch.float64)

    def curvature(self, num: int, like: Tensor) -> Curvature:
        return Curvature(Spectrum.of(self._squares.cpu().numpy() / (num * self._copies), self._copies))


def _sum_of(group: Group, network: MovedNetwork, full: bool, by_row: bool) -> _Sum:
    device = group.tuned.device
    if (act := network.acting.get(group.name)) is None or not by_row:
        return _SumOfBlocks(group.size, device) if full else _Sum(group.size, device)
    kind = _SumOfRows if act.is_table else _SumOfBlocks
    return kind(group.size // act.width, device, act.width)


def _pulled(results: Tensor, inputs: Tensor, weight: Tensor, stream: torch.Generator) -> Tensor:
    """Rows whose squares have the mean of the derivative's in the weight, summed over outputs: ``[.., in]``.

    Args:
        results: derivative in the results, ``[N, R, T, out]``.
        inputs: ``[N, T, in]``; of an embedding ``[N, T]``.
        weight: ``[out, ...]``; of an embedding ``[in, out]``.
        stream: of the signs.
    """
    along = results
    if (width := results.shape[-1]) > SIGNS:
        signs = torch.randint(2, (width, SIGNS), generator=stream).to(results) * 2 - 1
        along = results @ signs / SIGNS**0.5
    if inputs.dim() == 3:
        return (inputs[:, None].mT @ along).mT.flatten(0, 2)
    rows = along.new_zeros(*along.shape[:2], len(weight), along.shape[-1])
    places = inputs[:, None, :, None].expand(along.shape)
    return rows.scatter_add_(2, places, along).mT.flatten(0, 2)


def _rows(
    problem: Problem, network: MovedNetwork, tuned: Mapping[str, Tensor], indices: Sequence[int],
    stream: torch.Generator,
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:  # fmt: skip
    """``S^T J`` of every sample, batch by batch: group -> ``[N, R, *shape]``, and inputs of the acting groups."""
    loss = _surrogate(problem.loss)
    columns = min(problem.num_outputs, MOST_COLUMNS)
    size = columns * network.numbers
    width = max(1, min(problem.batch_size, MOST_NUMBERS // size)) if network.vectorised else 1
    for batch in batches_of_one_size(problem.data, indices, width):
        moved = problem.to_device(batch)
        yield network.pulled_back(moved.inputs, tuned, _cotangents(problem, loss, moved, stream))


def _surrogate(loss: Loss) -> Loss:
    """Cross-entropy for any loss of classes: a bounded one has negative curvature where it saturates."""
    return CROSS_ENTROPY if loss.classes else loss


def _cotangents(problem: Problem, loss: Loss, batch: Batch, stream: torch.Generator) -> Tensor:
    """Columns of S, ``[N, R, *output]``; of many, random combinations whose squares have the same mean."""
    with torch.no_grad():
        outputs = problem.forward(problem.params, batch.inputs)
    factor = loss.output_factor(outputs, batch.targets)
    num, found = problem.num_outputs, []
    for r in range(min(num, MOST_COLUMNS)):
        if num > MOST_COLUMNS:
            coefficients = torch.randn(outputs.shape, generator=stream).to(outputs) / np.sqrt(MOST_COLUMNS)
        else:
            coefficients = torch.zeros_like(outputs)
            coefficients.flatten(1)[:, r] = 1
        if factor.signs is not None:  # of a loss that is not convex the negative part is left out
            coefficients = coefficients * (factor.signs > 0)
        found.append(factor.columns(coefficients))
    return torch.stack(found, 1)
