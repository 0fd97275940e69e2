r"""The label confusion matrix F, ``F[y, z] = P(observed label z | true label y)``: read from a file, and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from genbound.errors import GenboundError

SINGULAR = 1e12  # condition number from which a confusion matrix says nothing of some classes


def read_matrix(file: str) -> np.ndarray:
    """F from a ``.npy`` or comma-separated file, as float64 ``[K, K]``.

    Raises:
        GenboundError: the file cannot be read, or holds no confusion matrix.
    """
    try:
        matrix = (
            np.load(file, allow_pickle=False) if file.endswith(".npy") else np.loadtxt(file, delimiter=",", ndmin=2)
        )
    except (OSError, ValueError) as error:
        raise GenboundError(f"{file!r} cannot be read as a label confusion matrix: {error}") from error
    return check_confusion(matrix)


def check_confusion(confusion: Any, num_classes: int | None = None) -> np.ndarray:
    """A confusion matrix as a float64 array.

    Args:
        confusion: matrix of shape ``[K, K]``, one row a true class.
        num_classes: K, where it is known.

    Raises:
        GenboundError: not square, of another number of classes, or rows that are no probabilities.
    """
    if isinstance(confusion, Tensor):
        confusion = confusion.detach().cpu().numpy()
    try:
        matrix = np.asarray(confusion, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GenboundError(f"the label confusion matrix holds no numbers: {error}") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise GenboundError(
            f"the label confusion matrix has shape {matrix.shape}: it must be square, one row a true class"
        )
    if num_classes is not None and len(matrix) != num_classes:
        raise GenboundError(f"the label confusion matrix is for {len(matrix)} classes, the model has {num_classes}")
    if not np.isfinite(matrix).all() or (matrix < 0).any() or not np.allclose(matrix.sum(1), 1, atol=1e-6):
        raise GenboundError("the rows of the label confusion matrix must be probabilities that add up to 1")
    return matrix
