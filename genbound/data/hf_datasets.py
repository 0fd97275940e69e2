"""Data sets of the ``datasets`` library that lie on this machine: saved to disk, as files, or in its cache."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from genbound.data import stored_columns
from genbound.data.columns import LABELS, Table, table_samples
from genbound.data.samples import Samples
from genbound.data.spec import DataSpec, Reader
from genbound.data.stored_columns import StoredColumn
from genbound.errors import GenboundError, first_line
from genbound.optional import import_optional

READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}

# What a split is called in names -> its name in the library.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-.*)?")

# What a column is for -> the names that it usually has.
USUAL = {
    "text": ("text", "sentence", "tokens", "words"),
    "image": ("image", "img"),
    "label": ("label", "labels", "ner_tags", "tags"),
}


def hub_samples(spec: DataSpec, reader: Reader) -> Samples:
    """The samples of a data set; columns that the SPEC does not name go by their usual names.

    Raises:
        GenboundError: the data set cannot be read, or has no such column.
    """
    found = load_dataset(spec)
    spec = _with_usual_columns(spec, list(found.column_names))
    for what in ("text", "text_pair", "image"):
        if what in spec.options and spec.options[what] not in found.column_names:
            raise GenboundError(
                f"data {spec.text!r}: no column {spec.options[what]!r}; the columns are {', '.join(found.column_names)}"
            )
    whole = {*spec.options.get("label", "").split(","), *LABELS}
    columns = {name: _column(found, name, spec, name in whole) for name in found.column_names}
    own = _has_own_classes(found, spec.options.get("label"))  # then its numbers are those, whatever the model's names
    classes = None if own else reader.label2id
    return table_samples(spec, reader, Table(f"hf:{spec.place}", columns, spec.base_dir, classes))


def _column(found: Any, name: str, spec: DataSpec, whole: bool) -> Any:
    """A column's values: as they are, all of them read, or of a large data set each when it is asked for."""
    if name == spec.options.get("image"):
        return found[name]  # it opens an image when it is asked for
    if whole or (found.data.nbytes or 0) <= stored_columns.LARGE:
        return list(found[name])
    column, kind = found[name], stored_columns.kind_of(str(found.data.schema.field(name).type))
    return StoredColumn(lambda row: column[row], len(found), f"hf:{spec.place}: column {name!r}", kind)


def _with_usual_columns(spec: DataSpec, columns: list[str]) -> DataSpec:
    """The SPEC with the columns of texts or images and of labels filled in; tokens need no name."""
    options = dict(spec.options)
    for what, usual in USUAL.items():
        unwanted = "input_ids" in columns if what == "text" else what == "image" and "text" in options
        guess = next((column for column in usual if column in columns), None)
        if what not in options and guess is not None and not unwanted:
            options[what] = guess
    return replace(spec, options=options)


def _has_own_classes(found: Any, label: str | None) -> bool:
    """Whether the data set keeps its label column as numbers of classes that it names itself."""
    feature = found.features[label] if label in found.column_names else None
    return getattr(getattr(feature, "feature", feature), "names", None) is not None


def load_dataset(spec: DataSpec) -> Any:
    """The rows of a data set; nothing is downloaded and no code of the data set is run.

    Args:
        spec: its place is a directory (of ``save_to_disk``, or with parquet, csv, json or arrow files), such a file, or
            ``NAME[/CONFIG]`` of one that the library has downloaded before. Its options: ``split``, which part, may be
            left out where there is only one; ``samples``, how many rows are wanted; ``streaming=yes``, read no more
            than those.
    """
    datasets = import_optional("datasets", "hf: data need datasets", "genbound[datasets]")
    streaming = spec.options.get("streaming", "no")
    if streaming not in ("yes", "no"):
        raise GenboundError(f"data {spec.text!r}: streaming={streaming} is not understood; use streaming=yes")
    with _quiet(datasets), tempfile.TemporaryDirectory() as cache:
        found = _split(_stored(datasets, spec, cache, streaming == "yes"), spec)
        if streaming == "yes":
            rows = list(found.take(spec.samples) if spec.samples else found)
            return datasets.Dataset.from_list(rows, features=found.features)
        return found.select(range(min(spec.samples, len(found)))) if spec.samples else found


def _stored(datasets: Any, spec: DataSpec, cache: str, streaming: bool) -> Any:
    """The data set wherever it lies, one part or all of them."""
    path = spec.path
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _of_one_split(datasets.load_from_disk(str(path)), spec)
        if path.exists():
            return _from_files(datasets, path, spec.options.get("split"), cache, streaming)
        return _from_cache(datasets, spec.place, streaming)
    except GenboundError:
        raise
    except Exception as error:
        raise GenboundError(
            f"data hf:{spec.place} cannot be read ({type(error).__name__}: {first_line(error)[:200]}); "
            "nothing is downloaded: save it to a directory (dataset.save_to_disk(DIR), "
            "or hf download --repo-type dataset NAME --local-dir DIR) and say hf:DIR"
        ) from error


def _of_one_split(found: Any, spec: DataSpec) -> Any:
    """As it is, unless it is a single part and another one is asked for."""
    split = spec.options.get("split")
    if isinstance(found, dict) or split is None or str(found.split) == SPLITS.get(split, split):
        return found
    own = "one part without a name" if found.split is None else f"the split {found.split} alone"
    raise GenboundError(f"data hf:{spec.place} has no split {split!r}; it is {own}: leave ?split= out")


def _split(found: Any, spec: DataSpec) -> Any:
    """The part that is asked for, of a data set with several."""
    if not isinstance(found, dict):
        return found
    split = spec.options.get("split")
    if split is None and len(found) > 1:
        raise GenboundError(f"data hf:{spec.place} has the splits {', '.join(found)}; say which with ?split=")
    if split is not None and split not in found:
        raise GenboundError(f"data hf:{spec.place} has no split {split!r}; it has {', '.join(found)}")
    return found[split or next(iter(found))]


def _from_files(datasets: Any, path: Path, split: str | None, cache: str, streaming: bool) -> Any:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in READERS and f.is_file())
    kinds = sorted({READERS.get(file.suffix, file.suffix) for file in files})
    if len(kinds) != 1 or kinds[0] not in READERS.values():
        raise GenboundError(
            f"{str(path)!r} holds {' and '.join(kinds) or 'no'} files; hf: reads a directory of parquet, csv, "
            "json or arrow files, or one of save_to_disk"
        )
    files = _files_of_split(files, path, split)
    given = {"data_files": [str(file) for file in files], "split": "train", "cache_dir": cache}
    if streaming:
        return datasets.load_dataset(kinds[0], streaming=True, **given)
    small = sum(file.stat().st_size for file in files) <= stored_columns.LARGE
    # What is not kept in memory is written to the cache once, and stays mapped when the cache is gone.
    return datasets.load_dataset(kinds[0], keep_in_memory=small, **given)


def _files_of_split(files: list[Path], root: Path, split: str | None) -> list[Path]:
    """Those of a split, by the names of files and folders as in the library; without any all are ``train``."""
    split_of = {file: _split_of(file, root) for file in files}
    found = sorted({name or "without a name" for name in split_of.values()})
    if split is None:
        if len(found) > 1:
            raise GenboundError(
                f"{str(root)!r} has files of the splits {', '.join(found)}; say which with ?split=, or name the file"
            )
        return files
    own = {file: {file.stem, *(() if split_of[file] else (*file.stem.split("-"), file.parent.name))} for file in files}
    named = [file for file in files if split_of[file] == SPLITS.get(split, split) or split in own[file]]
    if split == "train" and not any(split_of.values()):
        return files
    if not named:
        shown = ", ".join(file.name for file in files[:5])
        raise GenboundError(f"{str(root)!r} has no split {split!r}; its files are {shown}")
    return named


def _split_of(file: Path, root: Path) -> str | None:
    """``test`` of ``test-00000-of-00002``, ``my_test.csv`` and ``test/part.csv``, ``raw`` of ``raw-00000-of-00001``."""
    shard = SHARD.fullmatch(file.stem)
    part = shard[1].rpartition("-")[2] if shard else "data"  # after the data set's name, in the library's cache
    if part not in ("data", "part"):
        return SPLITS.get(part, part)
    for name in (file.stem, *reversed(file.relative_to(root).parts[:-1])):
        words = re.split(r"[\W\d_]+", name.lower())
        if found := [SPLITS[word] for word in words if word in SPLITS]:
            return found[0]
    return None


def _from_cache(datasets: Any, name: str, streaming: bool) -> Any:
    parts = name.split("/")
    config = (
        parts.pop() if len(parts) == 3 or (len(parts) == 2 and "." not in parts[0] and parts[0].islower()) else None
    )
    attempts = [(name, None)] if config is None else [("/".join(parts), config), (name, None)]
    for place, (repository, chosen) in enumerate(attempts):
        try:
            return datasets.load_dataset(repository, chosen, streaming=streaming)
        except Exception:
            if place == len(attempts) - 1:
                raise
    raise AssertionError


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Offline, without progress bars and without a log of what is refused in our own words."""
    offline, bars = datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
