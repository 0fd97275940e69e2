"""Columns of tables on disk that are larger than memory should hold: a row is read when it is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from genbound.errors import GenboundError, first_line

LARGE = 2**28  # bytes of a table, decoded, above which its rows stay where they are
GROUPS = 2  # row groups of a parquet file that are kept after they were read


class StoredColumn(Sequence):
    """A column whose rows lie on disk.

    Args:
        read: row -> its value.
        length: how many rows there are.
        where: file and column, for messages.
        holds: what every value is known to be, without a look at the rows: ``text``, ``words``, ``numbers`` (lists of
            them) or something else.
    """

    def __init__(self, read: Callable[[int], Any], length: int, where: str, holds: str):
        self._read, self._length, self._where, self.holds = read, length, where, holds

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, row: int) -> Any: ...

    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...

    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        value = self._read(row)
        if value is None:
            raise GenboundError(f"{self._where} of sample {row} is empty; fill it in or remove the row")
        return value

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def changed(self, change: Callable[[Any], Any]) -> StoredColumn:
        """The same with every value changed as it is read."""
        return StoredColumn(lambda row: change(self._read(row)), len(self), self._where, "")


def of_parquet(file: Any, path: Path, names: Sequence[str], limit: int | None) -> dict[str, StoredColumn]:
    """Columns of a parquet file, read by whole row groups of which the last few are kept.

    Args:
        file: the open file, of pyarrow.
        path: where it is, for messages.
        names: of the columns.
        limit: how many of the first rows are wanted.
    """
    ends = list(accumulate(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)))

    @lru_cache(maxsize=GROUPS)
    def group(number: int) -> Any:
        try:
            return file.read_row_group(number, columns=list(names))
        except Exception as error:  # pyarrow raises whatever a codec does
            raise GenboundError(
                f"{str(path)!r} is no readable parquet file (truncated?): {first_line(error)[:200]}; write it again"
            ) from error

    def reader(name: str) -> Callable[[int], Any]:
        def read(row: int) -> Any:
            number = bisect_right(ends, row)
            start = ends[number - 1] if number else 0
            return group(number).column(name)[row - start].as_py()

        return read

    length = file.metadata.num_rows if limit is None else min(limit, file.metadata.num_rows)
    kinds = {field.name: kind_of(str(field.type)) for field in file.schema_arrow}
    return {name: StoredColumn(reader(name), length, f"{str(path)!r}: column {name!r}", kinds[name]) for name in names}


def kind_of(written: str) -> str:
    """What the values of a column of this type of arrow are."""
    inner = written.removeprefix("large_").removeprefix("list<").partition(": ")[2].removesuffix(">")
    if written in ("string", "large_string"):
        return "text"
    if inner in ("string", "large_string"):
        return "words"
    return "numbers" if inner.startswith(("int", "uint")) else ""
