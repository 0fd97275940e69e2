"""The density of a matrix's eigenvalues, from the quadratures of :mod:`genbound.estimators.lanczos_quadrature`."""

from __future__ import annotations

import numpy as np


def density(
    quadratures: list[tuple[np.ndarray, np.ndarray]], dimension: int, grid: np.ndarray, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """The density of the eigenvalues, each of them widened to a normal distribution.

    Args:
        quadratures: nodes and weights of K start vectors.
        dimension: d, the size of the matrix.
        grid: G eigenvalues where it is wanted.
        width: standard deviation of the normal distribution, in the unit of the eigenvalues.

    Returns:
        ``(mean [G], sem [G])`` over the start vectors, a share of all eigenvalues per unit of eigenvalue. Where it is
        of a few eigenvalues, the error is known as little as the height.
    """
    mean = square = np.zeros(len(grid))
    for nodes, weights in quadratures:
        bells = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        mean, square = mean + bells @ weights, square + bells**2 @ weights
    mean, square = mean / len(quadratures), square / len(quadratures)
    variance = 2 / (dimension + 2) * np.maximum(square - mean**2, 0.0)
    return mean, np.sqrt(variance / len(quadratures))
