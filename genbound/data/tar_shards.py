"""Tar files of samples, as the webdataset library writes them: indexed at the start, read by place when it is needed.

A sample is what lies side by side under one name: ``000017.jpg``, ``000017.cls``, ``000017.json``. What follows the
first point of the file's name is a column. At the start the headers of all members are read, and the labels; a text or
an image is read when the sample is used.
"""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

from genbound.data.columns import Table, table_samples
from genbound.data.images import SUFFIXES
from genbound.data.samples import Samples
from genbound.data.spec import DataSpec, Reader
from genbound.data.stored_columns import StoredColumn
from genbound.errors import GenboundError, first_line

NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # of a member: what the sample is called, and the column
USUAL = {
    "text": ("txt", "text", "json.text", "json.caption"),
    "image": tuple(suffix.removeprefix(".") for suffix in SUFFIXES),
    "label": ("cls", "label", "json.label", "json.cls"),
}


@dataclass(frozen=True)
class Member:
    """A file in a tar file, by its place in it, in bytes."""

    start: int
    size: int


def shard_samples(spec: DataSpec, reader: Reader) -> Samples:
    """The samples of tar files; columns that the SPEC does not name go by their usual names.

    Raises:
        GenboundError: a file cannot be read, or a sample lacks a column.
    """
    shards = shard_files(spec)
    spec = _with_usual_columns(spec, shards[0])
    wanted = [column for what in ("text", "text_pair", "image") if (column := spec.options.get(what))]
    labels = spec.options["label"].split(",") if "label" in spec.options else []
    index = _Index(shards, wanted)
    known: dict[str, Any] = {label: list[Any]() for label in labels}
    every = ((number, *sample) for number, shard in enumerate(shards) for sample in samples_of(shard))
    for number, name, members in islice(every, spec.samples):
        shard, where = shards[number], f"sample {len(index)} ({name} in {str(shards[number])!r})"
        index.add(number, {column: _member(members, column, where) for column in wanted})
        for label in labels:
            value = _decoded(shard, _member(members, label, where), label, where)
            known[label].append(value.strip() if isinstance(value, str) else value)
    for column in wanted:
        is_image = column == spec.options.get("image")
        read = index.images(column) if is_image else index.texts(column)
        known[column] = StoredColumn(read, len(index), spec.text, "" if is_image else "text")
    return table_samples(spec, reader, Table(spec.text, known, spec.base_dir, reader.label2id))


def shard_files(spec: DataSpec) -> list[Path]:
    """The tar files of a SPEC: of a directory in the order of their names, of ``a-{000..012}.tar``, or one."""
    if spec.path.is_dir():
        if not (found := sorted(spec.path.glob("*.tar"))):
            raise GenboundError(f"{str(spec.path)!r} has no *.tar; name the directory of the shards, or a shard")
        return found
    files = [replace(spec, place=place) for place in unfolded(spec.place)]
    return [file.existing_file() for file in files]


def unfolded(place: str) -> list[str]:
    """Every name of a pattern with braces.

    Example:
        >>> unfolded("a-{08..10}.tar"), unfolded("{train,more}.tar")
        (['a-08.tar', 'a-09.tar', 'a-10.tar'], ['train.tar', 'more.tar'])
    """
    pieces = re.split(r"\{([^{}]*)\}", place)
    return ["".join(words) for words in product(*(_choices(p) if i % 2 else [p] for i, p in enumerate(pieces)))]


def _choices(inner: str) -> list[str]:
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inner.split(",")


def samples_of(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """``(name, column -> member)`` of every sample of a tar file, by the headers of its members."""
    name, members = "", dict[str, Member]()
    try:
        with tarfile.open(shard, "r:") as file:
            for info in file:
                file.members = []  # type: ignore[attr-defined]  # it would keep all of them
                found = NAME.fullmatch(info.name.removeprefix("./"))
                if not info.isreg() or found is None or info.name.startswith("__"):
                    continue
                if info.issparse():
                    raise GenboundError(f"{info.name} in {str(shard)!r} is a sparse file; pack it as an ordinary one")
                own, column = found[1], found[2].lower()
                if own != name and members:
                    yield name, members
                    members = {}
                if column in members:
                    raise GenboundError(f"{str(shard)!r} has {info.name} twice side by side; pack it again")
                name, members[column] = own, Member(info.offset_data, info.size)
            if _read(shard, Member(file.offset, tarfile.BLOCKSIZE)) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise ValueError("no mark at its end")  # tarfile takes a header that is cut off for the end
    except (tarfile.TarError, OSError, ValueError, ArithmeticError, RecursionError) as error:
        raise GenboundError(
            f"{str(shard)!r} is no readable tar file ({first_line(error)[:200]}): samples are read by place, so unpack "
            "compressed ones, and write truncated ones again"
        ) from error
    if members:
        yield name, members


def _with_usual_columns(spec: DataSpec, shard: Path) -> DataSpec:
    """The SPEC with the columns of texts or images and of labels filled in, judging by the first sample."""
    name, members = next(samples_of(shard), (None, dict[str, Member]()))
    if name is None:
        raise GenboundError(f"{str(shard)!r} has no samples; members are called NAME.jpg, NAME.cls and so on")
    there = [*members]
    for column in [column for column in there if column == "json"]:
        there += [f"json.{key}" for key in _entries(_read(shard, members[column]), f"{name} in {str(shard)!r}")]
    options = dict(spec.options)
    for what in ("image", "text", "label"):
        guess = next((column for column in USUAL[what] if column in there), None)
        unwanted = {"text": "image", "image": "text"}.get(what) in options
        if what not in options and guess is not None and not unwanted:
            options[what] = guess
    if not {"image", "text"} & options.keys():
        raise GenboundError(
            f"{str(shard)!r} does not say which members are images (image=EXT) or texts (text=EXT); the first sample, "
            f"{name}, has {', '.join(there)[:200]}"
        )
    return replace(spec, options=options)


class _Index:
    """Where the members of all samples lie.

    Args:
        shards: the tar files.
        columns: those that are read by need.
    """

    def __init__(self, shards: list[Path], columns: list[str]):
        self._shards, self._numbers = shards, array("l")
        self._starts = {column: array("q") for column in columns}
        self._sizes = {column: array("q") for column in columns}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, shard: int, members: Mapping[str, Member]) -> None:
        """One more sample."""
        self._numbers.append(shard)
        for column, member in members.items():
            self._starts[column].append(member.start)
            self._sizes[column].append(member.size)

    def _place(self, column: str, row: int) -> tuple[Path, Member]:
        return self._shards[self._numbers[row]], Member(self._starts[column][row], self._sizes[column][row])

    def images(self, column: str) -> Callable[[int], Any]:
        """``number of the sample -> its image``, as a column of parquet holds one."""
        return lambda row: {"bytes": _read(*self._place(column, row))}

    def texts(self, column: str) -> Callable[[int], str]:
        """``number of the sample -> its text``."""

        def read(row: int) -> str:
            shard, member = self._place(column, row)
            where = f"sample {row} in {str(shard)!r}"
            text = _decoded(shard, member, column, where)
            if not isinstance(text, str):
                raise GenboundError(f"{where}: its {column!r} is no text but {type(text).__name__}")
            return text

        return read


def _member(members: Mapping[str, Member], column: str, where: str) -> Member:
    """Of an entry of a json file, the file's."""
    found = members.get(column) or members.get("json" if column.startswith("json.") else "")
    if found is None:
        raise GenboundError(f"{where} has no {column!r}; it has {', '.join(members)[:200]}")
    return found


def _read(shard: Path, member: Member) -> bytes:
    with open(shard, "rb") as file:
        file.seek(member.start)
        content = file.read(member.size)
    if len(content) < member.size:
        raise GenboundError(f"{str(shard)!r} ends too soon: it was cut off, or changed as it was read; write it again")
    return content


def _decoded(shard: Path, member: Member, column: str, where: str) -> Any:
    """A text, or what a json file says under a name."""
    content = _read(shard, member)
    if column.startswith("json."):
        entries, key = _entries(content, where), column.removeprefix("json.")
        if key not in entries:
            raise GenboundError(f"{where}: its json has no {key!r}; it has {', '.join(map(str, entries))[:200]}")
        return entries[key]
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GenboundError(f"{where}: its {column!r} is no text in UTF-8; name another column") from error


def _entries(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise GenboundError(f"{where}: its json cannot be read ({first_line(error)[:200]}); write it again") from error
    if not isinstance(found, dict):
        raise GenboundError(f"{where}: its json is no object; write {{...}}")
    return found
