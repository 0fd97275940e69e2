"""The windows of pooling along one axis, as matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def spread(values: Sequence[int], dims: int) -> tuple[int, ...]:
    """One value for each axis; a single one stands for all."""
    values = tuple(values)
    return tuple(int(v) for v in (values * dims if len(values) == 1 else values))


def adaptive_windows(size: int, out: int, weight: Callable[[int], float]) -> np.ndarray:
    """``[out, size]``: what adaptive pooling adds up, each window with the weight that its length gives it."""
    matrix = np.zeros((out, size))
    for o in range(out):
        first, last = o * size // out, -((-(o + 1) * size) // out)
        matrix[o, first:last] = weight(last - first)
    return matrix


def windows(
    size: int, out: int, kernel: int, stride: int, padding: int, count_padding: bool, divide: bool
) -> np.ndarray:
    """``[out, size]``: average pooling, or the sums if they are not to be divided."""
    matrix = np.zeros((out, size))
    for o in range(out):
        first = o * stride - padding
        last = min(first + kernel, size + padding)
        counted = last - first
        first, last = max(first, 0), min(last, size)
        if not count_padding:
            counted = last - first
        matrix[o, first:last] = 1 / counted if divide else 1.0
    return matrix
