"""Euclidean projections onto norm balls, and which axis of a weight the rows are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def frobenius_ball(v: Tensor, radius: float) -> Tensor:
    r"""The nearest point to v, of any shape, with :math:`\|v\|_F \le r`: v scaled down."""
    norm = float(torch.linalg.vector_norm(v, dtype=torch.float64))
    return v if norm <= radius else v * (radius / norm)


def mars_ball(rows: Tensor, radius: float) -> Tensor:
    r"""The nearest point with :math:`\max_o \sum_j |v_{oj}| \le r` (maximum absolute row sum).

    The rows are independent, so each is projected onto the l1 ball: :math:`\mathrm{sign}(v)\max(|v| - \theta, 0)` with
    the :math:`\theta` for which the absolute values add up to r. Scaling a row down, as published code does, ends in
    the ball too, but not at its nearest point.

    Args:
        rows: ``[outputs, inputs]``.
        radius: r >= 0.

    References:
        Michelot, "A Finite Algorithm for Finding the Projection of a Point onto the Canonical Simplex of R^n",
            JOTA 1986.
        Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions", ICML 2008.
    """
    size = rows.abs()
    outside = size.sum(1, dtype=torch.float64) > radius
    if not bool(outside.any()):
        return rows
    result = rows.clone()
    size = size[outside]
    # Newton's method for theta: each round drops the entries that end at zero, none comes back, and it ends exactly.
    kept = torch.ones_like(size, dtype=torch.bool)
    while True:
        count = kept.sum(1, keepdim=True)
        theta = ((size * kept).sum(1, keepdim=True) - radius) / count
        smaller = kept & (size > theta)
        smaller = torch.where(smaller.any(1, keepdim=True), smaller, kept)  # radius 0: equal entries stay to the end
        if torch.equal(smaller, kept):
            break
        kept = smaller
    shrunk = (size - theta).clamp(min=0)
    # Subtracting r from sums that are far larger costs digits; a last scaling gives them back.
    shrunk *= (radius / shrunk.sum(1, keepdim=True, dtype=torch.float64)).to(shrunk.dtype).clamp(max=1).nan_to_num()
    result[outside] = result[outside].sign() * shrunk
    return result


def as_rows(weight: Tensor, module: nn.Module | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A weight as ``[outputs, everything else]``, and the way back: torch stores some kinds inputs first."""
    shape = weight.shape
    if isinstance(module, nn.modules.conv._ConvTransposeNd):  # [inputs, outputs / groups, ...]
        groups = module.groups
        split = weight.reshape(groups, shape[0] // groups, *shape[1:]).transpose(1, 2)
        inner = split.shape
        return (
            split.reshape(groups * shape[1], -1),
            lambda rows: rows.reshape(inner).transpose(1, 2).reshape(shape),
        )
    if (
        type(module).__name__ == "Conv1D" and weight.dim() == 2
    ):  # GPT-2's linear layer of transformers: [inputs, outputs]
        return weight.T, lambda rows: rows.T
    return weight.reshape(shape[0], -1), lambda rows: rows.reshape(shape)


def round_towards(start: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """``start + v`` in a number format, with no entry further from the start than v says.

    Rounding to nearest would leave the ball: in bfloat16 by more than a small radius. Only where the start
    itself cannot be represented may an entry end further away, by one rounding.

    Args:
        start, v: of one shape.
        dtype: the number format of the result.
    """
    new = (start.double() + v.double()).to(dtype)
    for _ in range(2):
        too_far = (new.double() - start.double()).abs() > v.abs()
        if not bool(too_far.any()):
            return new
        new = torch.where(too_far, torch.nextafter(new, start.to(dtype)), new)
    too_far = (new.double() - start.double()).abs() > v.abs()
    return torch.where(too_far, start.to(dtype), new)
