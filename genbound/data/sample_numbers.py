"""A file that names samples by their places in the data: one number a line, or an array of numpy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from genbound.errors import GenboundError


def read_numbers(path: str | os.PathLike) -> list[int]:
    """Places in the data, from 0.

    Args:
        path: a text file with a number in each line, or ``.npy`` with whole numbers ``[M]``.

    Raises:
        GenboundError: it cannot be read, or holds something else.
    """
    file = Path(path)
    try:
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False)
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError("no list of whole numbers")
            return [int(i) for i in array]
        return [int(line) for line in file.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise GenboundError(
            f"{path} does not name samples ({str(error).splitlines()[0]}): give a text file with one number a line, "
            "counted from 0 in the order of the data, or a .npy of them"
        ) from error
