"""Stored parts that show whether they are as they were written: arrays and summaries with a checksum.

A part is an ``.npz`` whose zip comment holds two digests: of what was found before it, and of all bytes before the
second digest. It is an ordinary archive for everybody else.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genbound.estimators.measured import Measured, Part

NOTHING = "0" * 64  # the digest behind a first stage
_LENGTH = len(NOTHING)
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
    rows = [(key, str(a.dtype), a.shape, hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest())
            for key, a in sorted((key, np.asarray(value)) for key, value in arrays.items())]  # fmt: skip
    return digest_of(rows)


def digest_of_measured(measured: Measured, data_only: bool = False) -> str:
    """SHA-256 of what a quantity found, or of its arrays ``data`` alone."""
    if data_only:
        return digest_of_arrays(measured.data)
    summary = json.dumps(measured.summary, sort_keys=True)
    arrays = (measured.samples, measured.data, measured.weights)
    return digest_of(summary, *map(digest_of_arrays, arrays))


def write_part(path: Path, part: Part, place: str, behind: str = NOTHING) -> None:
    """Write arrays with their checksum.

    Args:
        path: of the file.
        part: arrays of any shapes.
        place: what the file is a part of; one that lies in another place is damaged there.
        behind: digest of what was found before it.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **part)
    # A zip ends with the length of its comment and the comment, which is empty here.
    body = buffer.getvalue()[:-2] + (2 * _LENGTH).to_bytes(2, "little") + behind.encode()
    path.write_bytes(body + _checksum(body, place).encode())


def read_part(path: Path, place: str) -> tuple[Part, str]:
    """``(arrays, digest of what was found before them)``.

    Raises:
        Damaged: the file is not as it was written.
        FileNotFoundError: it is not there.
    """
    raw = _bytes(path)
    body, checksum = raw[:-_LENGTH], raw[-_LENGTH:]
    if _checksum(body, place).encode() != checksum:
        raise Damaged(path, WRONG)
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}, body[-_LENGTH:].decode()


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


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(path, str(error.strerror)) from error


def _checksum(body: bytes, place: str) -> str:
    return hashlib.sha256(place.encode() + b"\0" + body).hexdigest()


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
