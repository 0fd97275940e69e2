r"""The Gauss-Newton curvature of the mean loss in each group: its trace, or its eigenvalues and eigenvectors.

With :math:`\nabla_f^2 \ell = SS^\top` in the output and J the outputs' derivative in a group's tensor, the group's
block is the mean over samples of :math:`J^\top S S^\top J`, positive semidefinite. It only shapes the posterior, which
may be any Gaussian: an estimate from some samples costs tightness and no validity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from genbound.data.samples import Batch
from genbound.network.loss_functions import CROSS_ENTROPY, Loss
from genbound.posterior.gaussian import Spectrum

if TYPE_CHECKING:
    from genbound.network.problem import Problem
    from genbound.posterior.groups import Group
    from genbound.posterior.moved_network import MovedNetwork

MOST_COLUMNS = 32  # of S that are all taken; of more, as many random combinations
MOST_NUMBERS = 1 << 26  # of the rows of one batch


@dataclass(frozen=True)
class Curvature:
    """Of one group.

    Attributes:
        spectrum: along the axes.
        axes: eigenvectors, one a column ``[d, d]``; ``None`` where every direction has the same curvature.
    """

    spectrum: Spectrum
    axes: Tensor | None = None


def measure_curvature(
    problem: Problem, network: MovedNetwork, groups: Sequence[Group], indices: Sequence[int], full: Sequence[str],
    stream: torch.Generator,
) -> dict[str, Curvature]:  # fmt: skip
    """The curvature of every group at the fine-tuned weights.

    Args:
        problem: whose loss and samples.
        network: as a function of the groups.
        groups: the tensors.
        indices: the samples that the mean is taken over, by their places in the data.
        full: groups whose whole block is wanted.
        stream: of random combinations, where the output has many coordinates.

    Cost: a forward pass and one backward pass for each output coordinate (:data:`MOST_COLUMNS` at most) over those
    samples, and an eigendecomposition for each whole block.
    """
    traces = dict.fromkeys((group.name for group in groups), 0.0)
    device = problem.device
    blocks = {g.name: torch.zeros(g.size, g.size, device=device) for g in groups if g.name in full}
    tuned = {group.name: group.tuned for group in groups}
    for rows in _rows(problem, network, tuned, indices, stream):
        for name, found in rows.items():
            flat = found.flatten(2).flatten(0, 1)
            if name in blocks:
                blocks[name] += flat.T @ flat
            else:
                traces[name] += float(flat.square().sum(dtype=torch.float64))
    return {group.name: _curvature(group, traces[group.name], blocks.get(group.name), len(indices)) for group in groups}


def _curvature(group: Group, trace: float, block: Tensor | None, num: int) -> Curvature:
    if block is None:
        return Curvature(Spectrum.flat(trace / num, group.size))
    values, axes = torch.linalg.eigh(block.double().cpu() / num)
    return Curvature(Spectrum.of(values.numpy()), axes.to(group.tuned))


def _rows(
    problem: Problem, network: MovedNetwork, tuned: Mapping[str, Tensor], indices: Sequence[int],
    stream: torch.Generator,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """``S^T J`` of every sample, batch by batch: group -> ``[N, R, *shape]``."""
    loss = _surrogate(problem.loss)
    columns = min(problem.num_outputs, MOST_COLUMNS)
    size = columns * sum(t.numel() for t in tuned.values())
    width = max(1, min(problem.batch_size, MOST_NUMBERS // size)) if network.vectorised else 1
    for batch in problem.data.batches(sorted(indices, key=problem.data.size), width):
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
