"""Euclidean projections onto norm balls, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def frobenius_ball(v: Tensor, radius: float) -> Tensor:
    r"""The nearest point to v with :math:`\|v\|_F \le r`: v scaled down."""
    norm = float(torch.linalg.vector_norm(v, dtype=torch.float64))
    return v if norm <= radius else v.double() * (radius / norm)


def mars_ball(rows: Tensor, radius: float) -> Tensor:
    r"""The nearest point with :math:`\max_o \sum_j |v_{oj}| \le r` (maximum absolute row sum).

    The rows are independent, so each is projected onto the l1 ball: :math:`\mathrm{sign}(v)\max(|v| - \theta, 0)` with the
    :math:`\theta` for which the absolute values add up to r. Scaling a row down, as published code does, ends in
    the ball too, but not at its nearest point.

    Args:
        rows: ``[outputs, inputs]``.
        radius: r >= 0.

    References:
        Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions", ICML 2008.
    """
    size = rows.double().abs()
    outside = size.sum(1) > radius
    if not bool(outside.any()):
        return rows
    result = rows.double().clone()
    size = size[outside]
    descending = size.sort(dim=1, descending=True).values
    excess = descending.cumsum(1) - radius
    count = torch.arange(1, size.shape[1] + 1, device=size.device, dtype=torch.float64)
    last = (descending * count > excess).sum(1, keepdim=True).clamp(min=1)  # how many entries stay non-zero
    theta = excess.gather(1, last - 1) / last
    shrunk = (size - theta).clamp(min=0)
    # Subtracting r from sums that are far larger costs digits; a last scaling gives them back.
    shrunk *= (radius / shrunk.sum(1, keepdim=True)).clamp(max=1).nan_to_num()
    result[outside] = result[outside].sign() * shrunk
    return result


def round_towards(start: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """``start + v`` in a number format, with no entry further from the start than v says.

    Rounding to nearest would leave the ball: in bfloat16 by more than a small radius. Only where the start
    itself cannot be represented may an entry end further away, by one rounding.
    """
    new = (start.double() + v.double()).to(dtype)
    for _ in range(2):
        too_far = (new.double() - start.double()).abs() > v.abs()
        if not bool(too_far.any()):
            return new
        new = torch.where(too_far, torch.nextafter(new, start.to(dtype)), new)
    too_far = (new.double() - start.double()).abs() > v.abs()
    return torch.where(too_far, start.to(dtype), new)
