"""The per-sample values of many samples: a table larger than memory, which is made and written by blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genbound.estimators import disk_table
from genbound.estimators.disk_table import DiskTable, Table, runs_of

GAP = 64  # rows that are not wanted and yet read, for what lies on either side of them


@dataclass(frozen=True)
class SampleRows:
    """What :func:`~genbound.results.results.samples_frame` makes a table of, before it is one.

    Attributes:
        every: indices of the M samples in the data ``[M]``.
        layers: names of the L layers.
        arrays: quantity -> (places among ``every`` of the samples that it was measured on ``[N]``, column -> values
            ``[N]`` or ``[N, L]``).
    """

    every: np.ndarray
    layers: Sequence[str]
    arrays: Mapping[str, tuple[np.ndarray, Mapping[str, Table]]]

    @classmethod
    def of(
        cls,
        every: Sequence[int],
        indices: Sequence[int],
        layers: Sequence[str],
        arrays: Mapping[str, Mapping[str, Table]],
    ) -> SampleRows | None:
        """From all samples, and the arguments of :func:`~genbound.results.results.samples_frame`."""
        place = {index: i for i, index in enumerate(every)}
        found = {}
        for quantity, named in arrays.items():
            numbers = named["sample"] if "sample" in named else indices
            shapes = {(len(numbers),), (len(numbers), len(layers))}
            columns = {
                quantity if key == "value" else f"{quantity}_{key}": values
                for key, values in named.items()
                if key != "sample" and values.shape in shapes
            }
            found[quantity] = np.array([place[int(index)] for index in numbers]), columns
        if not any(columns for _, columns in found.values()):
            return None
        return cls(np.array(every, dtype=np.int64), layers, found)

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return ["sample", "layer", *(name for _, columns in self.arrays.values() for name in columns)]

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def blocks(self) -> Iterator[pd.DataFrame]:
        """The table, some samples at a time, a row for each sample and layer."""
        order = {quantity: np.argsort(places, kind="stable") for quantity, (places, _) in self.arrays.items()}
        for run in runs_of(len(self.every), len(self.layers)):
            some = self.every[run]
            table: dict[str, Any] = {
                "sample": np.repeat(some, len(self.layers)),
                "layer": np.tile(np.array(self.layers, object), len(some)),
            }
            for quantity, (places, columns) in self.arrays.items():
                ordered = places[order[quantity]]
                first, last = np.searchsorted(ordered, [run.start, run.stop])
                rows, whole = order[quantity][first:last], len(places) == len(self.every)
                for name, values in columns.items():
                    shape = (len(some), len(self.layers))
                    found = np.empty(shape, values.dtype) if whole else np.full(shape, np.nan)
                    chosen = _taken(values, rows)
                    found[ordered[first:last] - run.start] = chosen if chosen.ndim == 2 else chosen[:, None]
                    table[name] = found.reshape(-1)
            yield pd.DataFrame(table)

    def frame(self) -> pd.DataFrame:
        """All of it, in memory."""
        return pd.concat(self.blocks(), ignore_index=True)

    def write(self, path: Path) -> None:
        """Write it as a Parquet file, a group of rows for each block."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        writer = None
        try:
            for block in self.blocks():
                table = pa.Table.from_pandas(block, preserve_index=False)
                writer = writer or pq.ParquetWriter(path, table.schema)
                writer.write_table(table.cast(writer.schema))
        finally:
            if writer is not None:
                writer.close()


def is_large(indices: Sequence[int], layers: Sequence[str]) -> bool:
    """Whether a table of these samples and layers is not for memory."""
    return len(indices) * len(layers) > disk_table.MOST


def in_memory(samples: pd.DataFrame | SampleRows) -> pd.DataFrame:
    """The whole table, in memory."""
    return samples.frame() if isinstance(samples, SampleRows) else samples


def write_samples(samples: pd.DataFrame | SampleRows, path: Path) -> None:
    """Write the table as a Parquet file."""
    if isinstance(samples, SampleRows):
        samples.write(path)
    else:
        samples.to_parquet(path, index=False)


def _taken(values: Table, rows: np.ndarray) -> np.ndarray:
    """These rows of an array, in their order."""
    if not isinstance(values, DiskTable) or not len(rows):
        return values[rows] if isinstance(values, np.ndarray) else np.empty((0, values.shape[1]), values.dtype)
    wanted, back = np.unique(rows, return_inverse=True)
    found, starts = [], np.flatnonzero(np.diff(wanted, prepend=wanted[0] - GAP - 1) > GAP)
    for run in np.split(wanted, starts[1:]):
        found.append(values[int(run[0]) : int(run[-1]) + 1][run - run[0]])
    return np.concatenate(found)[back]
