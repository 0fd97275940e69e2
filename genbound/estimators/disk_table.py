"""Tables of many samples and layers that lie on the disk: arithmetic goes through them by column or by rows.

A table ``[N, L]`` in float64 takes 1.6 GB for a million samples and 200 layers, and a measurement has several. What is
larger than :data:`MOST` numbers is kept in a temporary file without a name, column after column. It is gone with the
process, however that ends. ``TMPDIR`` says where it lies; in a folder that is kept in memory nothing is saved.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from genbound.errors import GenboundError

MOST = 2**22  # numbers of a table that is kept in memory
RUN = 2**18  # numbers of the rows that are read at a time


class DiskTable:
    """An array ``[N, L]`` in a file, indexed as numpy's: by column ``[:, i]`` and by runs of rows ``[a:b]``.

    Args:
        num: N rows.
        width: L columns.
        dtype: of its numbers. They are zero at first.
    """

    ndim = 2

    def __init__(self, num: int, width: int, dtype: Any = float):
        self.shape, self.dtype = (num, width), np.dtype(dtype)
        self._file = _reported(lambda: _unnamed_file(num * width * self.dtype.itemsize))
        weakref.finalize(self, os.close, self._file)

    @classmethod
    def of(cls, array: np.ndarray) -> DiskTable:
        """A copy of an array."""
        table = cls(array.shape[0], array.shape[1], array.dtype)
        table[:] = array
        return table

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """A column, or some of it ``[m]``; or a run of rows ``[m, L]``."""
        if isinstance(key, tuple):
            rows, column = key
            return self._read(column, 0, len(self))[rows]
        first, last = self._run(key)
        found = np.empty((last - first, self.shape[1]), self.dtype)
        for i in range(self.shape[1]):
            found[:, i] = self._read(i, first, last)
        return found

    def __setitem__(self, key: Any, values: np.ndarray) -> None:
        if isinstance(key, tuple):
            rows, column = key
            whole = self._read(column, 0, len(self))
            whole[rows] = values
            self._write(column, 0, whole)
            return
        first, last = self._run(key)
        rows = np.broadcast_to(values, (last - first, self.shape[1])).astype(self.dtype, copy=False)
        for i in range(self.shape[1]):
            self._write(i, first, np.ascontiguousarray(rows[:, i]))

    def runs(self) -> Iterator[slice]:
        """All rows, so many at a time as fit into memory."""
        return runs_of(*self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, in memory."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def __reduce__(self) -> Any:
        return DiskTable.of, (self[:],)

    def _run(self, key: slice) -> tuple[int, int]:
        first, last, step = key.indices(len(self))
        if step != 1:
            raise IndexError("rows of a table on the disk are read in runs without gaps")
        return first, max(first, last)

    def _place(self, column: int, row: int) -> int:
        return (range(self.shape[1])[column] * len(self) + row) * self.dtype.itemsize

    def _read(self, column: int, first: int, last: int) -> np.ndarray:
        found = np.empty(last - first, self.dtype)
        view, place = found.data.cast("B"), self._place(column, first)
        while len(view):
            got = os.preadv(self._file, [view], place)
            if not got:
                raise GenboundError("a temporary file was cut short by another program")
            view, place = view[got:], place + got
        return found

    def _write(self, column: int, row: int, values: np.ndarray) -> None:
        view, place = np.ascontiguousarray(values, self.dtype).data.cast("B"), self._place(column, row)
        while len(view):
            written = _reported(lambda view=view, place=place: os.pwrite(self._file, view, place))
            view, place = view[written:], place + written


Table = Any  # an array, or a table on the disk, which is indexed alike


def new_table(num: int, width: int, dtype: Any = float) -> Table:
    """A table of zeros ``[num, width]``: in memory where it is small, else on the disk."""
    return np.zeros((num, width), dtype) if num * width <= MOST else DiskTable(num, width, dtype)


def runs_of(num: int, width: int) -> Iterator[slice]:
    """The rows of a table ``[num, width]``, so many at a time as fit into memory."""
    step = max(1, RUN // max(1, width))
    return (slice(first, min(first + step, num)) for first in range(0, num, step))


def _unnamed_file(length: int) -> int:
    """A descriptor of a temporary file of zeros, of so many bytes."""
    with tempfile.TemporaryFile(prefix="genbound-") as file:
        os.truncate(file.fileno(), length)
        return os.dup(file.fileno())


def _reported(work: Any) -> Any:
    """What the work gives; where the disk does not take it, one line says so."""
    try:
        return work()
    except OSError as error:
        raise GenboundError(
            f"a table of all samples does not fit into {_folder()} ({error.strerror}): make room, or let TMPDIR name a "
            "folder that has it; with --out, what was finished before is kept and the same command continues"
        ) from error


def _folder() -> str:
    """Where temporary files lie; Python does not say where it can write into none."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "any folder for temporary files"
