"""Files of samples: arrays of an npz archive, columns of a csv, jsonl or parquet table, their labels."""

import csv
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from genbound.data.sample_parts import to_tensor
from genbound.errors import GenboundError


def parse_options(spec: str, query: str, allowed: Sequence[str]) -> dict[str, Any]:
    """The options behind the ``?`` of a data SPEC; counts become numbers."""
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if name not in allowed or not equals or not value:
            raise GenboundError(f"data {spec!r}: option {part!r} is not understood; there are {'=, '.join(allowed)}=")
        options[name] = unquote(value)
    for name in {"samples", "max_length", "size"} & set(options):
        if not re.fullmatch(r"0*[1-9][0-9]{0,11}", options[name]):
            raise GenboundError(f"data {spec!r}: {name}={options[name]} is no positive whole number")
        options[name] = int(options[name])
    for name in {"mean", "std"} & set(options):
        try:
            options[name] = [float(number) for number in options[name].split(",")]
        except ValueError:
            options[name] = []
        if len(options[name]) != 3 or (name == "std" and min(options[name]) <= 0):
            raise GenboundError(f"data {spec!r}: {name}= needs three numbers with commas, one a colour")
    return options


def existing_file(path: Path) -> Path:
    """``path`` if it is a file with something in it; one line otherwise."""
    if not path.exists():
        raise GenboundError(f"no data file {str(path)!r}; check the path after the colon of --data")
    if not path.is_file():
        raise GenboundError(f"{str(path)!r} is not a file; name the file itself in --data")
    if path.stat().st_size == 0:
        raise GenboundError(f"data file {str(path)!r} is empty (0 bytes); write it again")
    return path


def read_npz(
    path: Path, x: str | None = None, y: str | None = None, raw_images: bool = False
) -> tuple[Any, Tensor, bool]:
    """Inputs and labels of an npz archive; nothing in it is ever unpickled.

    The inputs are the array ``x``; an archive without one gives all its other arrays, as a dict when there
    are several (``input_ids``, ``attention_mask``, ...). The labels are ``y``, ``labels`` or ``label``.
    Images that are uint8 of shape N×H×W×3 become float32 N×3×H×W divided by 255; no mean is subtracted.

    Args:
        path: the archive.
        x: name of the input array, where it is not ``x``.
        y: name of the label array, where it is not one of the above.
        raw_images: leave uint8 images as they are, for an image processor.

    Returns:
        The inputs, the labels, and whether the inputs are raw images (one array).

    Raises:
        GenboundError: not a readable archive, object arrays, a missing name, more than fits into memory.
    """
    arrays, label = _npz_arrays(existing_file(path), x, y)
    targets = arrays.pop(label)
    encoded = encode_labels(targets.tolist(), str(path)) if targets.dtype.kind in "US" else None
    if raw_images and len(arrays) == 1 and _is_image(array := next(iter(arrays.values()))):
        if encoded is None:
            encoded = _whole(targets)
        return array, encoded, True
    inputs = {name: _image(array) for name, array in arrays.items()}
    if not inputs:
        raise GenboundError(f"{str(path)!r} has labels {label!r} but no inputs; save them as 'x'")
    for name, array in inputs.items():
        if array.dtype.kind not in "biufc":
            raise GenboundError(f"array {name!r} of {str(path)!r} holds {array.dtype}, not numbers")
    tensors = {name: to_tensor(array, f"array {name!r} of {str(path)!r}") for name, array in inputs.items()}
    encoded = _whole(targets) if encoded is None else encoded
    return (next(iter(tensors.values())) if len(tensors) == 1 else tensors), encoded, False


def _npz_arrays(path: Path, x: str | None, y: str | None) -> tuple[dict[str, np.ndarray], str]:
    """Inputs and labels by name, and which are the labels; arrays that are not asked for stay unread."""
    try:
        with path.open("rb") as file:  # opened here, because np.load leaves a damaged file open
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise GenboundError(f"{str(path)!r} is one .npy array; save inputs and labels with np.savez")
            with archive:
                names, label = _npz_names(path, archive.files, x, y)
                _check_sizes(path, archive.zip, names)
                return {name: archive[name] for name in names}, label
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        NotImplementedError,
        MemoryError,
        RuntimeError,
        TypeError,
        SyntaxError,
        OverflowError,
    ) as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise GenboundError(
                f"{str(path)!r} holds pickled Python objects, which are never loaded; save plain arrays"
            ) from error
        raise GenboundError(f"{str(path)!r} is no readable npz archive (truncated?): {error}") from error


def _check_sizes(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> None:
    """Refuse arrays that claim more than the archive holds or the memory does, before anything is allocated."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 40
    entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    total = 0
    for name in dict.fromkeys(names):
        entry = entries[name]
        with archive.open(entry) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
        claimed = dtype.itemsize
        for side in shape:
            claimed *= int(side)
        if claimed > entry.file_size:
            raise GenboundError(f"array {name!r} of {str(path)!r} claims {claimed} bytes and has fewer; save it again")
        if entry.file_size > 1 << 28 and entry.file_size > 500 * max(entry.compress_size, 1):
            raise GenboundError(
                f"array {name!r} of {str(path)!r} unpacks to {entry.file_size} bytes like a zip bomb; save it again"
            )
        total += claimed
    if total > free:
        raise GenboundError(
            f"the arrays of {str(path)!r} need {total >> 20} MiB and {free >> 20} MiB are free; save fewer samples in it"
        )


def _npz_names(path: Path, present: list[str], x: str | None, y: str | None) -> tuple[list[str], str]:
    if not present:
        raise GenboundError(f"{str(path)!r} holds no arrays; save it with np.savez(FILE, x=..., y=...)")
    names = ", ".join(present)
    label = y or next((name for name in ("y", "labels", "label") if name in present), None)
    if label is None:
        raise GenboundError(f"{str(path)!r} has no labels 'y' (arrays: {names}); add ?y=NAME to --data")
    for name in (label, x):
        if name is not None and name not in present:
            raise GenboundError(f"{str(path)!r} has no array {name!r}; it has {names}")
    if x is None and "x" in present:
        x = "x"
    return ([name for name in present if name != label] if x is None else [x]) + [label], label


def _is_image(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3


def _image(array: np.ndarray) -> np.ndarray:
    if _is_image(array):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    return array


def _whole(labels: np.ndarray) -> Tensor:
    # Classes are often stored as 0.0, 1.0, ...; numbers with a fraction are targets of a regression.
    tensor = to_tensor(labels, "labels")
    is_whole = tensor.is_floating_point() and bool((tensor == tensor.round()).all())
    return tensor.long() if is_whole and tensor.ndim == 1 else tensor


def encode_labels(
    labels: Sequence, where: str, label2id: Mapping[str, int] | None = None, names: bool = False
) -> Tensor:
    """Class indices of labels that are integers, or strings.

    Strings are looked up in ``label2id`` (the model's own names) where it has real names, and are numbered in
    sorted order otherwise; with ``names`` also those that look like numbers.

    Raises:
        GenboundError: a missing, negative or fractional label, or one that the model does not know.
    """
    for row, label in enumerate(labels):
        if label is None or label == "" or label != label:
            raise GenboundError(f"{where}: sample {row} has no label; fill it in or remove the row")
    known = label2id if label2id and not all(name.startswith("LABEL_") for name in label2id) else None
    numbers = [None if names and not known else _integer(label) for label in labels]
    if known and all(isinstance(label, str) and label in known for label in labels):
        return torch.tensor([known[label] for label in labels], dtype=torch.long)
    if None not in numbers:
        negative = next((row for row, number in enumerate(numbers) if number < 0), None)
        if negative is not None:
            raise GenboundError(
                f"{where}: label {numbers[negative]} of sample {negative} is negative; "
                "classes count from 0, remove unlabelled rows"
            )
        return torch.tensor(numbers, dtype=torch.long)
    row = numbers.index(None)
    if not isinstance(labels[row], str) or (_is_number(labels[row]) and not names):
        raise GenboundError(f"{where}: label {labels[row]!r} of sample {row} is no class; use whole numbers or names")
    found = {str(label) for label in labels}
    # LABEL_0, LABEL_1, ... is what transformers writes when nobody named the classes.
    if known:
        unknown = sorted(found - set(known))
        raise GenboundError(f"{where}: label {unknown[0][:80]!r} is none of the model's {', '.join(known)[:200]}")
    numbered = {name: index for index, name in enumerate(sorted(found))}
    return torch.tensor([numbered[str(label)] for label in labels], dtype=torch.long)


def _integer(label) -> int | None:
    try:
        number = float(label)  # "1.0": the column went through floats on its way into the csv
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and abs(number) < 1 << 53 else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_table(kind: str, path: Path, columns: Sequence[str] | None, limit: int | None = None) -> dict[str, list]:
    """The named columns (all for ``None``) of the first rows of a csv (with a header, UTF-8), jsonl or parquet file."""
    reader = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}[kind]
    table = reader(existing_file(path), columns, limit)
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
            table = {column: [] for column in columns}
            for row in islice(rows, limit):
                if None in row or None in row.values():
                    raise GenboundError(
                        f"{str(path)!r} line {rows.line_num}: not as many cells as the header has; quote cells that hold commas"
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


def _read_parquet(path: Path, columns: Sequence[str] | None, limit: int | None) -> dict[str, list]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise GenboundError("parquet files need pyarrow: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names) if columns is None else list(columns)
            _require(repr(str(path)), columns, file.schema_arrow.names)
            table: dict[str, list] = {column: [] for column in columns}
            for batch in file.iter_batches(columns=columns):
                for column, values in batch.to_pydict().items():
                    table[column] += values
                if limit is not None and len(table[columns[0]]) >= limit:
                    break
            return {column: values[:limit] for column, values in table.items()}
    except (pyarrow.ArrowException, OSError, MemoryError, ValueError) as error:
        reason = str(error)[:200]
        raise GenboundError(
            f"{str(path)!r} is no readable parquet file (truncated?): {reason}; write it again"
        ) from error
