"""A file that names samples by their places in the data: one number a line, or an array of numpy.

What a training run leaves behind (``.npz``) also says how many samples there were and what some labels are, so that
places in other data, or in another order, are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genbound.data.samples import Samples
from genbound.errors import GenboundError
from genbound.files import write_atomically


def read_numbers(path: str | os.PathLike, data: Samples | None = None) -> list[int]:
    """Places in the data, from 0.

    Args:
        path: a text file with a number in each line, ``.npy`` with whole numbers ``[M]``, or the ``.npz`` of a training
            run.
        data: the samples that they are places of; an ``.npz`` is held against them.

    Raises:
        GenboundError: it cannot be read, holds something else, or was counted in other data.
    """
    file = Path(path)
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in ("samples", "num_data", "places", "labels")}
            for array in found.values():
                if array.dtype.kind not in "iu" or array.ndim > 1 or array.size == 0 and array.ndim == 0:
                    raise ValueError("no list of whole numbers")
            if data is not None:
                _check(file, found, data)
            return [int(i) for i in found["samples"]]
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False)
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError("no list of whole numbers")
            return [int(i) for i in array]
        return [int(line) for line in file.read_text(encoding="utf-8").split()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GenboundError(
            f"{path} does not name samples ({str(error).splitlines()[0]}): give a text file with one number a line, "
            "counted from 0 in the order of the data, or a .npy of them"
        ) from error


def write_seen(file: Path, samples: Iterable[int], num_data: int, labels: Mapping[int, int]) -> None:
    """Write which samples a training run has seen.

    Args:
        file: an ``.npz``.
        samples: their places in the data.
        num_data: how many samples the data have.
        labels: of some of the data's samples, by place.
    """
    arrays: dict[str, Any] = {
        "samples": np.array(list(samples), dtype=np.int64), "num_data": np.array(num_data),
        "places": np.array(list(labels), dtype=np.int64), "labels": np.array(list(labels.values()), dtype=np.int64),
    }  # fmt: skip

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            np.savez(stream, **arrays)

    write_atomically(file, write)


def _check(file: Path, found: Mapping[str, np.ndarray], data: Samples) -> None:
    size = int(found["num_data"])
    if size != len(data):
        raise GenboundError(
            f"{file} counts places in {size} samples and the data have {len(data)}: give the data that were trained on"
        )
    for place, label in zip(found["places"].tolist(), found["labels"].tolist(), strict=True):
        if not 0 <= place < size or data.label(place) != label:
            raise GenboundError(
                f"{file} was counted in other data, or in another order: sample {place} had label {label} there. Give "
                "the data as they were trained on"
            )
