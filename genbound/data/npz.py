"""NumPy archives: named arrays whose first axis counts the samples; nothing in them is ever unpickled."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from genbound.data.image_transforms import make_transform
from genbound.data.images import ImageSamples
from genbound.data.labels import encode_labels, label_numbering, refuse_two_readings
from genbound.data.sample_parts import to_tensor
from genbound.data.samples import Samples, TensorSamples
from genbound.data.spec import DataSpec, Reader
from genbound.data.texts import shifted
from genbound.errors import GenboundError

UNREADABLE = (
    OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, MemoryError,
    RuntimeError, TypeError, SyntaxError, OverflowError, tokenize.TokenError,
)  # fmt: skip


def npz_samples(spec: DataSpec, reader: Reader) -> Samples:
    """The samples of an archive.

    The inputs are the array ``x``; an archive without one gives all its other arrays, as a dict when there
    are several (``input_ids``, ``attention_mask``, ...). The labels are ``y``, ``labels`` or ``label``.
    Images that are uint8 of shape N×H×W×3 are prepared as the checkpoint and the options say; where neither does, they
    become float32 N×3×H×W divided by 255.

    Raises:
        GenboundError: not a readable archive, object arrays, a missing name, more than fits into memory.
    """
    path = spec.existing_file()
    arrays, label = npz_arrays(path, spec.options.get("x"), spec.options.get("y"))
    labels = arrays.pop(label)
    named = labels.dtype.kind in "US"
    if labels.dtype.kind in "iu" and reader.labelled and not (reader.numeric or reader.next_token):
        refuse_two_readings(np.unique(labels).tolist(), str(path), reader.label2id)
    targets = encode_labels(labels.tolist(), str(path), reader.label2id) if named else _whole(labels)
    if not arrays:
        raise GenboundError(f"{str(path)!r} has labels {label!r} but no inputs; save them as 'x'")
    images = next(iter(arrays.values()))
    prepared = {"size", "mean", "std"} & set(spec.options)
    if prepared and not (len(arrays) == 1 and _is_image(images)):
        raise GenboundError(
            f"data {spec.text!r}: {', '.join(sorted(prepared))} are for images, uint8 arrays N x H x W x 3, and "
            f"{str(path)!r} holds {images.dtype} {images.shape}; prepare the arrays yourself, or save them as such"
        )
    if len(arrays) == 1 and _is_image(images) and (prepared or reader.images is not None or reader.image_settings):
        transform = make_transform(spec.options, reader.images, reader.image_settings)
        samples: Samples = ImageSamples(list(images), targets, transform, spec.text)
    else:
        samples = TensorSamples(_inputs(arrays, path), targets.float() if reader.numeric else targets, spec.text)
    if named:
        samples.label2id = label_numbering(labels.tolist(), targets, reader.label2id)
    return shifted(samples.head(spec.samples), reader.next_token)


def _inputs(arrays: dict[str, np.ndarray], path: Path) -> Tensor | dict[str, Tensor]:
    """The input arrays as tensors: a dict where there are several."""
    tensors = {}
    for name, array in arrays.items():
        array = _image(array)
        if array.dtype.kind not in "biufc":
            raise GenboundError(f"array {name!r} of {str(path)!r} holds {array.dtype}, not numbers")
        tensors[name] = to_tensor(array, f"array {name!r} of {str(path)!r}")
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def npz_arrays(path: Path, x: str | None, y: str | None) -> tuple[dict[str, np.ndarray], str]:
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
    except UNREADABLE as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise GenboundError(
                f"{str(path)!r} holds pickled Python objects, which are never loaded; save plain arrays"
            ) from error
        raise GenboundError(f"{str(path)!r} is no readable npz archive (truncated?): {error}") from error


def _check_sizes(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> None:
    """Refuse arrays that claim more than the archive holds or the memory does, before anything is allocated."""
    entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    total = 0
    for name in dict.fromkeys(names):
        entry, (shape, dtype) = entries[name], _header(archive, entries[name])
        if dtype.hasobject:
            raise GenboundError(
                f"array {name!r} of {str(path)!r} holds Python objects, which are never loaded; save plain arrays "
                f"({name}.astype(int) for class numbers, .astype(str) for names)"
            )
        claimed = math.prod((dtype.itemsize, *map(int, shape)))
        if claimed > entry.file_size:
            raise GenboundError(f"array {name!r} of {str(path)!r} claims {claimed} bytes and has fewer; save it again")
        if entry.file_size > 1 << 28 and entry.file_size > 500 * max(entry.compress_size, 1):
            raise GenboundError(
                f"array {name!r} of {str(path)!r} unpacks to {entry.file_size} bytes like a zip bomb; save it again"
            )
        total += claimed
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 40
    if total > free:
        raise GenboundError(
            f"the arrays of {str(path)!r} need {total >> 20} MiB and {free >> 20} MiB are free; "
            "save fewer samples in it"
        )


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, as its header claims them."""
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return shape, dtype


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
