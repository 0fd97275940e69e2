"""Data sets of the ``datasets`` library that lie on this machine: saved to disk, as files, or in its cache."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genbound.errors import GenboundError, first_line

READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def import_datasets() -> Any:
    try:
        import datasets
    except Exception as error:
        raise GenboundError(f"hf: data need datasets ({error}): pip install genbound[datasets]") from error
    return datasets


def load_dataset(name: str, folder: Path, split: str | None, samples: int | None, streaming: bool) -> Any:
    """The rows of a data set; nothing is downloaded and no code of the data set is run.

    Args:
        name: a directory (of ``save_to_disk``, or with parquet, csv, json or arrow files), such a file, or
            ``NAME[/CONFIG]`` of one that the library has downloaded before.
        folder: what relative paths start from.
        split: which part; may be left out where there is only one.
        samples: how many rows are wanted.
        streaming: read only as many rows as are wanted.
    """
    datasets = import_datasets()
    path = Path(folder, name).expanduser()
    with _quiet(datasets), tempfile.TemporaryDirectory() as cache:
        try:
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                found = datasets.load_from_disk(str(path))
            elif path.exists():
                found = _from_files(datasets, path, split, cache, streaming)
            else:
                found = _from_cache(datasets, name, streaming)
        except GenboundError:
            raise
        except Exception as error:
            reason = first_line(error)[:200]
            raise GenboundError(
                f"data hf:{name} cannot be read ({type(error).__name__}: {reason}); nothing is downloaded: save it to a directory "
                "(dataset.save_to_disk(DIR), or hf download --repo-type dataset NAME --local-dir DIR) and say hf:DIR"
            ) from error
        if isinstance(found, dict):
            if split is None and len(found) > 1:
                raise GenboundError(f"data hf:{name} has the splits {', '.join(found)}; say which with ?split=")
            if split is not None and split not in found:
                raise GenboundError(f"data hf:{name} has no split {split!r}; it has {', '.join(found)}")
            found = found[split or next(iter(found))]
        if streaming:
            rows = list(found.take(samples) if samples else found)
            return datasets.Dataset.from_list(rows, features=found.features)
        return found.select(range(min(samples, len(found)))) if samples else found


def _from_files(datasets: Any, path: Path, split: str | None, cache: str, streaming: bool) -> Any:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in READERS and f.is_file())
    kinds = sorted({READERS.get(file.suffix, file.suffix) for file in files})
    if len(kinds) != 1 or kinds[0] not in READERS.values():
        raise GenboundError(
            f"{str(path)!r} holds {' and '.join(kinds) or 'no'} files; hf: reads a directory of parquet, csv, json or arrow files, "
            "or one of save_to_disk"
        )
    if split is not None and len(files) > 1:
        named = [file for file in files if split in file.stem or split in file.parent.name]
        if not named:
            raise GenboundError(
                f"{str(path)!r} has no split {split!r}; its files are {', '.join(f.name for f in files[:5])}"
            )
        files = named
    given = {"data_files": [str(file) for file in files], "split": "train", "cache_dir": cache}
    if streaming:
        return datasets.load_dataset(kinds[0], streaming=True, **given)
    return datasets.load_dataset(kinds[0], keep_in_memory=True, **given)


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
