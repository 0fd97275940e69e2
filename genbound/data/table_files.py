"""Files of rows and columns: csv, jsonl, parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from genbound.data import stored_columns
from genbound.data.spec import DataSpec
from genbound.errors import GenboundError
from genbound.optional import import_optional


def read_table(spec: DataSpec, columns: Sequence[str] | None, whole: Collection[str] = ()) -> dict[str, Sequence]:
    """The named columns of the first rows of a csv (with a header, UTF-8), jsonl or parquet file.

    Args:
        spec: the file, and how many rows are wanted.
        columns: names; ``None`` for all.
        whole: those that are read now, whatever their size. Of a large parquet file the others are read by need.

    Returns:
        Name -> values, one a row.
    """
    path = spec.existing_file()
    columns = None if columns is None else list(dict.fromkeys(columns))  # of one named twice the rows count once
    table: dict[str, Sequence]
    if spec.scheme == "parquet":
        table = _read_parquet(path, columns, spec.samples, whole)
    else:
        table = dict({"csv": _read_csv, "jsonl": _read_jsonl}[spec.scheme](path, columns, spec.samples))
    if not table or not next(iter(table.values())):
        raise GenboundError(f"{str(path)!r} has no rows; write it again")
    return table


def _require(where: str, columns: Sequence[str], present: Sequence[str]) -> None:
    for column in columns:
        if column not in present:
            shown = ", ".join(str(name)[:40] for name in present[:20])
            raise GenboundError(f"{where} has no column {column!r}; it has {shown or 'none'}")


def _read_csv(path: Path, columns: Sequence[str] | None, limit: int | None) -> dict[str, list]:
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the name of the first column.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            columns = list(rows.fieldnames or []) if columns is None else columns
            _require(repr(str(path)), columns, rows.fieldnames or [])
            table: dict[str, list] = {column: [] for column in columns}
            for row in islice(rows, limit):
                if None in row or None in row.values():
                    raise GenboundError(
                        f"{str(path)!r} line {rows.line_num}: not as many cells as the header has; "
                        "quote cells that hold commas"
                    )
                for column in columns:
                    table[column].append(row[column])
            return table
    except (csv.Error, UnicodeDecodeError) as error:
        raise GenboundError(f"{str(path)!r} is no readable UTF-8 csv: {error}; save it as UTF-8 with commas") from error


def _read_jsonl(path: Path, columns: Sequence[str] | None, limit: int | None) -> dict[str, list]:
    table: dict[str, list] = {column: [] for column in columns or ()}
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            for number, line in islice(lines, limit):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise GenboundError(f"{str(path)!r} line {number} is no JSON object; write one {{...}} a line")
                if columns is None:
                    columns = list(row)
                    table = {column: [] for column in columns}
                _require(f"{str(path)!r}, line {number},", columns, list(row))
                for column in columns:
                    table[column].append(row[column])
    except (ValueError, RecursionError) as error:  # also of bytes that are no UTF-8 and numbers without end
        raise GenboundError(
            f"{str(path)!r} is no readable jsonl: {str(error)[:200]}; write one JSON object a line"
        ) from error
    return table


def _read_parquet(
    path: Path, columns: Sequence[str] | None, limit: int | None, whole: Collection[str]
) -> dict[str, Sequence]:
    pyarrow, parquet = (
        import_optional(name, "parquet files need pyarrow", "pyarrow") for name in ("pyarrow", "pyarrow.parquet")
    )
    try:
        with parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names) if columns is None else list(columns)
            _require(repr(str(path)), columns, file.schema_arrow.names)
            size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
            if size > stored_columns.LARGE:
                now = [column for column in columns if column in whole]
                later = [column for column in columns if column not in whole]
                stored = stored_columns.of_parquet(parquet.ParquetFile(path), path, later, limit)
                return {**stored, **_read_batches(file, now, limit)}
            return dict(_read_batches(file, columns, limit))
    except (pyarrow.ArrowException, OSError, MemoryError, ValueError) as error:
        reason = str(error)[:200]
        raise GenboundError(
            f"{str(path)!r} is no readable parquet file (truncated?): {reason}; write it again"
        ) from error


def _read_batches(file: Any, columns: Sequence[str], limit: int | None) -> dict[str, list]:
    """The columns of the first rows of an open parquet file."""
    table: dict[str, list] = {column: [] for column in columns}
    for batch in file.iter_batches(columns=list(columns)) if columns else ():
        for column, values in batch.to_pydict().items():
            table[column] += values
        if limit is not None and len(table[columns[0]]) >= limit:
            break
    return {column: values[:limit] for column, values in table.items()}
