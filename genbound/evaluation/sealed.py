"""Stored parts that show whether they are as they were written: arrays and summaries with a checksum.

A part is an ``.npz`` whose zip comment holds two digests: of what was found before it, and of all bytes before the
second digest. It is an ordinary archive for everybody else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from genbound.estimators import disk_table
from genbound.estimators.disk_table import DiskTable, Table
from genbound.estimators.measured import Measured, Part

NOTHING = "0" * 64  # the digest behind a first stage
_LENGTH = len(NOTHING)
READ = 2**20  # bytes of a file that are looked at together
WRONG = "its checksum is wrong"


class Damaged(Exception):
    """A stored file is not as it was written."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"stored part {path} is damaged ({reason})")


def digest_of(*things: Any) -> str:
    """SHA-256 of plain values, as 64 hexadecimal digits."""
    return hashlib.sha256(repr(things).encode()).hexdigest()


def digest_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays of any shape, with their names, types and shapes."""
    rows = []
    for key, value in sorted(arrays.items()):
        table = value if isinstance(value, DiskTable) else np.asarray(value)
        found = hashlib.sha256()
        for run in _runs(table):
            found.update(run)
        rows.append((key, str(table.dtype), table.shape, found.hexdigest()))
    return digest_of(rows)


def _runs(table: Table) -> Iterator[bytes]:
    """The numbers of an array, row after row."""
    if isinstance(table, DiskTable):
        yield from (table[run].tobytes() for run in table.runs())
    else:
        yield np.ascontiguousarray(table).tobytes()


def digest_of_measured(measured: Measured, data_only: bool = False) -> str:
    """SHA-256 of what a quantity found, or of its arrays ``data`` alone."""
    if data_only:
        return digest_of_arrays(measured.data)
    summary = json.dumps(measured.summary, sort_keys=True)
    return digest_of(summary, *(digest_of_arrays(a) for a in (measured.samples, measured.data, measured.weights)))


def write_part(path: Path, part: Part, place: str, behind: str = NOTHING) -> None:
    """Write arrays with their checksum.

    Args:
        path: of the file.
        part: arrays of any shapes.
        place: what the file is a part of; one that lies in another place is damaged there.
        behind: digest of what was found before it.
    """
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, values in part.items():
            table = values if isinstance(values, DiskTable) else np.asanyarray(values)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write_array(file, table)
        # The zip ends with its comment.
        archive.comment = behind.encode() + NOTHING.encode()
    with open(path, "r+b") as file:
        checksum = _checksum_of(file, os.path.getsize(path) - _LENGTH, place)
        file.seek(-_LENGTH, os.SEEK_END)
        file.write(checksum.encode())


def _write_array(file: IO[bytes], table: Table) -> None:
    """Write an array as ``.npy``, a large one by runs of its rows."""
    if not isinstance(table, DiskTable):
        np.lib.format.write_array(file, table, allow_pickle=False)
        return
    described = {"descr": np.lib.format.dtype_to_descr(table.dtype), "fortran_order": False, "shape": table.shape}
    np.lib.format.write_array_header_1_0(file, described)
    for run in _runs(table):
        file.write(run)


def read_part(path: Path, place: str, on_disk: bool = False) -> tuple[Part, str]:
    """``(arrays, digest of what was found before them)``.

    Args:
        path: of the file.
        place: what the file is a part of.
        on_disk: whether large tables stay on the disk (:mod:`genbound.estimators.disk_table`).

    Raises:
        Damaged: the file is not as it was written.
        FileNotFoundError: it is not there.
    """
    with _opened(path) as file:
        length = os.fstat(file.fileno()).st_size
        if length < 2 * _LENGTH:
            raise Damaged(path, WRONG)
        found = _checksum_of(file, length - _LENGTH, place)
        file.seek(length - 2 * _LENGTH)
        behind, checksum = file.read(_LENGTH), file.read(_LENGTH)
        if found.encode() != checksum:
            raise Damaged(path, WRONG)
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            arrays = {name.removesuffix(".npy"): _read_array(archive, name, on_disk) for name in names}
            return arrays, behind.decode()


def _read_array(archive: zipfile.ZipFile, name: str, on_disk: bool) -> Table:
    """An array; a large table goes to the disk by runs of its rows where it may."""
    with archive.open(name) as file:
        np.lib.format.read_magic(file)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        if on_disk and len(shape) == 2 and math.prod(shape) > disk_table.MOST and not by_column:
            table = DiskTable(*shape, dtype)
            for run in table.runs():
                rows = (run.stop - run.start, shape[1])
                table[run] = np.frombuffer(file.read(math.prod(rows) * dtype.itemsize), dtype).reshape(rows)
            return table
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def sealed_summary(content: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Plain values with their checksum beside them."""
    return {**content, "sha256": _checksum(_text(content), place)}


def read_summary(path: Path, place: str) -> dict[str, Any]:
    """The values that :func:`sealed_summary` gave.

    Raises:
        Damaged: the file is not as it was written.
        FileNotFoundError: it is not there.
    """
    try:
        content = json.loads(_bytes(path))
        checksum = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged(path, "it cannot be read") from error
    if _checksum(_text(content), place) != checksum:
        raise Damaged(path, WRONG)
    return content


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(path, str(error.strerror)) from error


def _bytes(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _checksum_of(file: BinaryIO, length: int, place: str) -> str:
    """Of the first bytes of a file, which may be larger than memory; it is that of :func:`_checksum`."""
    found = hashlib.sha256(place.encode() + b"\0")
    file.seek(0)
    while length > 0 and (some := file.read(min(length, READ))):
        found.update(some)
        length -= len(some)
    return found.hexdigest()


def _checksum(body: bytes, place: str) -> str:
    return hashlib.sha256(place.encode() + b"\0" + body).hexdigest()


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
