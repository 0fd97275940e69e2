r"""Whether the loss under noise is still quadratic: its rise I beside :math:`A = \tfrac12\sigma^2 \mathrm{Tr}\,H`.

Rows are those of ``noise_stability``, one a sigma, in increasing order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TOLERANCE = 0.1  # how far rise and approximation may be apart, relative to the approximation
SPAN = 2.0  # ratio of two sigmas over which a proportional rise means something


def relative_rss(values: Sequence[float], approximations: Sequence[float]) -> float | None:
    r""":math:`\sum_\sigma (I - A)^2 / \sum_\sigma I^2` over a grid of sigmas.

    Args:
        values: I, rise of the loss at each sigma ``[S]``.
        approximations: A, what the trace says of it, in the same unit ``[S]``.

    Returns:
        A ratio without unit; ``None`` where the loss does not move at all.
    """
    rises, expected = np.asarray(values, float), np.asarray(approximations, float)
    if not rises.any():
        return None
    return float(((rises - expected) ** 2).sum() / (rises**2).sum())


def relative_rss_noise(rows: Sequence[Mapping[str, Any]]) -> float | None:
    r"""What errors alone add to :func:`relative_rss`: :math:`\sum (\mathrm{sem}_I^2 + \mathrm{sem}_A^2) / \sum I^2`."""
    if not any(row["value"] for row in rows):
        return None
    noise = sum(row["sem"] ** 2 + row["hessian_approximation_sem"] ** 2 for row in rows)
    return float(noise / sum(row["value"] ** 2 for row in rows))


def is_quadratic(value: float, approximation: float, error: float, tolerance: float = TOLERANCE) -> bool | None:
    r"""Whether the rise of the loss agrees with :math:`\tfrac12\sigma^2 \mathrm{Tr}\,H`.

    Args:
        value: the rise.
        approximation: what the trace says of it, in the same unit.
        error: standard error of the difference of the two; twice that is allowed for.
        tolerance: how far they may be apart beside it, relative to the approximation.

    Returns:
        ``None`` where they agree only because twice the error is more than twice the tolerance: nothing is known.
    """
    if abs(value - approximation) > tolerance * abs(approximation) + 2 * error:
        return False
    return None if error > tolerance * abs(approximation) else True


def mark_kinks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    r"""The rows, each with ``kinks``: the rise is proportional to :math:`\sigma^2`, but off the approximation.

    Seen are the first rows whose :math:`I / \sigma^2` agrees with that of the smallest sigma. They count if they span a
    factor of two: a smooth loss that leaves the quadratic regime is right at the smallest sigma, or rises faster.
    """
    first, alike = rows[0], 0
    scale = first["value"] / first["sigma"] ** 2
    error = first["sem"] / first["sigma"] ** 2
    for row in rows:
        own, own_error = row["value"] / row["sigma"] ** 2, row["sem"] / row["sigma"] ** 2
        if not row["reliable"] or abs(own - scale) > TOLERANCE * abs(scale) + 2 * np.hypot(error, own_error):
            break
        alike += 1
    spans = alike > 1 and rows[alike - 1]["sigma"] >= SPAN * first["sigma"]
    kinks = spans and first["quadratic_regime"] is False
    return [
        row | {"kinks": bool(kinks and i < alike and row["quadratic_regime"] is False)} for i, row in enumerate(rows)
    ]
