"""Files of samples: arrays of an npz archive, columns of a csv, jsonl or parquet table, their labels."""

import csv
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from genbound.errors import GenboundError
from genbound.sample_parts import to_tensor


def parse_options(spec: str, query: str, allowed: Sequence[str]) -> dict[str, Any]:
    """The options behind the ``?`` of a data SPEC; counts become numbers."""
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if name not in allowed or not equals or not value:
            raise GenboundError(f"data {spec!r}: option {part!r} is not understood; there are {'=, '.join(allowed)}=")
        options[name] = unquote(value)
    for name in {"samples", "max_length"} & set(options):
        if not options[name].isdecimal() or int(options[name]) < 1:
            raise GenboundError(f"data {spec!r}: {name}={options[name]} is no positive whole number")
        options[name] = int(options[name])
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


def read_npz(path: Path, x: str | None = None, y: str | None = None) -> tuple[Tensor | dict[str, Tensor], Tensor]:
    """Inputs and labels of an npz archive; nothing in it is ever unpickled.

    The inputs are the array ``x``; an archive without one gives all its other arrays, as a dict when there
    are several (``input_ids``, ``attention_mask``, ...). The labels are ``y``, ``labels`` or ``label``.
    Images that are uint8 of shape N×H×W×3 become float32 N×3×H×W divided by 255; no mean is subtracted.

    Args:
        path: the archive.
        x: name of the input array, where it is not ``x``.
        y: name of the label array, where it is not one of the above.

    Raises:
        GenboundError: not a readable archive, object arrays, a missing name.
    """
    arrays, label = _npz_arrays(existing_file(path), x, y)
    targets = arrays.pop(label)
    inputs = {name: _image(array) for name, array in arrays.items()}
    if not inputs:
        raise GenboundError(f"{str(path)!r} has labels {label!r} but no inputs; save them as 'x'")
    for name, array in inputs.items():
        if array.dtype.kind not in "biufc":
            raise GenboundError(f"array {name!r} of {str(path)!r} holds {array.dtype}, not numbers")
    tensors = {name: to_tensor(array, f"array {name!r} of {str(path)!r}") for name, array in inputs.items()}
    targets = encode_labels(targets.tolist(), str(path)) if targets.dtype.kind in "US" else _whole(targets)
    return (next(iter(tensors.values())) if len(tensors) == 1 else tensors), targets


def _npz_arrays(path: Path, x: str | None, y: str | None) -> tuple[dict[str, np.ndarray], str]:
    """Inputs and labels by name, and which are the labels; arrays that are not asked for stay unread."""
    try:
        with path.open("rb") as file:  # opened here, because np.load leaves a damaged file open
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise GenboundError(f"{str(path)!r} is one .npy array; save inputs and labels with np.savez")
            with archive:
                names, label = _npz_names(path, archive.files, x, y)
                return {name: archive[name] for name in names}, label
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        NotImplementedError,
    ) as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise GenboundError(
                f"{str(path)!r} holds pickled Python objects, which are never loaded; save plain arrays"
            ) from error
        raise GenboundError(f"{str(path)!r} is no readable npz archive (truncated?): {error}") from error


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


def _image(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3:
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    return array


def _whole(labels: np.ndarray) -> Tensor:
    # Classes are often stored as 0.0, 1.0, ...; numbers with a fraction are targets of a regression.
    tensor = to_tensor(labels, "labels")
    is_whole = tensor.is_floating_point() and bool((tensor == tensor.round()).all())
    return tensor.long() if is_whole and tensor.ndim == 1 else tensor


def encode_labels(labels: Sequence, where: str, label2id: Mapping[str, int] | None = None) -> Tensor:
    """Class indices of labels that are integers, or strings.

    Strings are looked up in ``label2id`` (the model's own names) where it has real names, and are numbered in
    sorted order otherwise.

    Raises:
        GenboundError: a missing, negative or fractional label, or one that the model does not know.
    """
    for row, label in enumerate(labels):
        if label is None or label == "" or label != label:
            raise GenboundError(f"{where}: sample {row} has no label; fill it in or remove the row")
    numbers = [_integer(label) for label in labels]
    if None not in numbers:
        negative = next((row for row, number in enumerate(numbers) if number < 0), None)
        if negative is not None:
            raise GenboundError(
                f"{where}: label {numbers[negative]} of sample {negative} is negative; "
                "classes count from 0, remove unlabelled rows"
            )
        return torch.tensor(numbers, dtype=torch.long)
    row = numbers.index(None)
    if not isinstance(labels[row], str) or _is_number(labels[row]):
        raise GenboundError(f"{where}: label {labels[row]!r} of sample {row} is no class; use whole numbers or names")
    names = {str(label) for label in labels}
    # LABEL_0, LABEL_1, ... is what transformers writes when nobody named the classes.
    if label2id and not all(name.startswith("LABEL_") for name in label2id):
        unknown = sorted(names - set(label2id))
        if unknown:
            raise GenboundError(f"{where}: label {unknown[0]!r} is none of the model's {', '.join(label2id)}")
    else:
        label2id = {name: index for index, name in enumerate(sorted(names))}
    return torch.tensor([label2id[str(label)] for label in labels], dtype=torch.long)


def _integer(label) -> int | None:
    try:
        number = float(label)  # "1.0": the column went through floats on its way into the csv
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_table(kind: str, path: Path, columns: Sequence[str]) -> dict[str, list]:
    """The named columns of a csv (with a header, UTF-8), jsonl or parquet file."""
    reader = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}[kind]
    table = reader(existing_file(path), columns)
    if not table[columns[0]]:
        raise GenboundError(f"{str(path)!r} has no rows")
    return table


def _require(path: Path, columns: Sequence[str], present: Sequence[str]) -> None:
    for column in columns:
        if column not in present:
            raise GenboundError(f"{str(path)!r} has no column {column!r}; it has {', '.join(map(str, present))}")


def _read_csv(path: Path, columns: Sequence[str]) -> dict[str, list]:
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the name of the first column.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            _require(path, columns, rows.fieldnames or [])
            table = {column: [] for column in columns}
            for row in rows:
                if None in row or None in row.values():
                    raise GenboundError(f"{str(path)!r} line {rows.line_num}: not as many cells as the header has")
                for column in columns:
                    table[column].append(row[column])
            return table
    except (csv.Error, UnicodeDecodeError) as error:
        raise GenboundError(f"{str(path)!r} is no readable UTF-8 csv: {error}") from error


def _read_jsonl(path: Path, columns: Sequence[str]) -> dict[str, list]:
    table = {column: [] for column in columns}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise GenboundError(f"{str(path)!r} line {number} is no JSON object")
                _require(Path(f"{path}, line {number}"), columns, list(row))
                for column in columns:
                    table[column].append(row[column])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GenboundError(f"{str(path)!r} is no readable jsonl: {error}") from error
    return table


def _read_parquet(path: Path, columns: Sequence[str]) -> dict[str, list]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise GenboundError("parquet files need pyarrow: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            _require(path, columns, file.schema_arrow.names)
            return file.read(columns=list(columns)).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise GenboundError(f"{str(path)!r} is no readable parquet file (truncated?): {error}") from error
