"""Columns of a table as samples: which are texts, images or tokens, and which hold the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genbound.data.image_transforms import make_transform
from genbound.data.images import ImageSamples
from genbound.data.labels import label_numbering, read_labels
from genbound.data.samples import Samples
from genbound.data.spec import DataSpec, Reader
from genbound.data.stored_columns import StoredColumn
from genbound.data.table_files import read_table
from genbound.data.texts import TextSamples, TokenSamples
from genbound.errors import GenboundError

TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
LABELS = ("labels", "label")  # of tokens
Labels = Tensor | list[list[int]] | None


@dataclass(frozen=True)
class Table:
    """Columns by name, each with one value a sample.

    Attributes:
        where: the file or the data set, for messages.
        columns: name -> values.
        folder: what paths of images start from.
        classes: class names and numbers; labels that are strings are numbered in sorted order without them.
    """

    where: str
    columns: Mapping[str, Any]
    folder: Path
    classes: Mapping[str, int] | None = None


def file_samples(spec: DataSpec, reader: Reader) -> Samples:
    """The samples of a csv, jsonl or parquet file."""
    wanted: list[str] | None = [spec.options[name] for name in ("text", "text_pair", "image") if name in spec.options]
    if _is_tokenised(spec):
        if spec.scheme == "csv" and ("label" in spec.options or reader.tokenizer is None):
            raise GenboundError(f"data {spec.text!r} does not say which column is the text: add text=COL after '?'")
        wanted = None  # every column with one list a row is an input
    elif "label" in spec.options:
        wanted += spec.options["label"].split(",")
    elif reader.labelled and not reader.next_token:
        raise _unlabelled(spec)
    columns = read_table(spec, wanted, {*spec.options.get("label", "").split(","), *LABELS})
    return table_samples(spec, reader, Table(str(spec.path), columns, spec.path.parent, reader.label2id))


def table_samples(spec: DataSpec, reader: Reader, table: Table) -> Samples:
    """Samples of the columns that the SPEC names: of texts, of images, or of every column of tokens.

    Raises:
        GenboundError: a column is missing, or holds something else than what it is named for.
    """
    label = _label(spec, reader, table)
    labels = _read_labels(spec, reader, table, label)
    prepared = _token_samples if _is_tokenised(spec) else _image_samples if "image" in spec.options else _text_samples
    samples: Samples = prepared(spec, reader, table, labels)
    if label is not None and label in table.columns:  # and not several of them
        samples.label2id = label_numbering(table.columns[label], labels, reader.label2id)
    return samples


def _is_tokenised(spec: DataSpec) -> bool:
    """No column of texts or images is named, so that the table must hold tokens."""
    return not {"text", "image"} & set(spec.options)


def _unlabelled(spec: DataSpec) -> GenboundError:
    return GenboundError(f"data {spec.text!r} does not say which column is the label: add label=COL after '?'")


def _label(spec: DataSpec, reader: Reader, table: Table) -> str | None:
    """The label column, or several with commas; ``None`` where the tokens themselves are the labels."""
    usual = [name for name in LABELS if _is_tokenised(spec) and name in table.columns]
    label = spec.options.get("label") or next(iter(usual), None)
    if label is None:
        if reader.labelled and not reader.next_token:
            raise _unlabelled(spec)
        return None
    for name in label.split(","):
        if name not in table.columns:
            raise GenboundError(f"{table.where!r} has no column {name!r}; it has {', '.join(map(str, table.columns))}")
    return label


def _read_labels(spec: DataSpec, reader: Reader, table: Table, label: str | None) -> Labels:
    if label is None:
        rows = len(next(iter(table.columns.values()), ()))
        return None if reader.next_token else torch.zeros(rows, dtype=torch.long)  # nobody looks at them
    if "text" in spec.options:
        texts = table.columns[spec.options["text"]]
        words = bool(len(texts)) and isinstance(texts[0], list)
    else:
        words = _is_tokenised(spec)
    columns = [table.columns[name] for name in label.split(",")]
    return read_labels(columns, table.where, table.classes, reader.numeric, words)


def _image_samples(spec: DataSpec, reader: Reader, table: Table, labels: Labels) -> ImageSamples:
    images = table.columns[spec.options["image"]]

    def placed(image: Any) -> Any:
        return table.folder / image if isinstance(image, str) else image

    if isinstance(images, StoredColumn):
        images = images.changed(placed)
    elif isinstance(images, list):  # a data set's own column opens an image when it is asked for
        images = [placed(image) for image in images]
    return ImageSamples(images, labels, make_transform(spec.options, reader.images, reader.image_settings), spec.text)


def _text_samples(spec: DataSpec, reader: Reader, table: Table, labels: Labels) -> TextSamples:
    pairs = _texts(table, spec.options["text_pair"]) if "text_pair" in spec.options else None
    return TextSamples(
        _texts(table, spec.options["text"]), pairs, labels, reader.tokenizer, spec.options.get("max_length"), spec.text,
        reader.next_token, reader.padding,
    )  # fmt: skip


def _texts(table: Table, name: str) -> Sequence[Any]:
    """A column of texts, or of lists of words."""
    if isinstance(column := table.columns[name], StoredColumn) and column.holds in ("text", "words"):
        return column
    for row, text in enumerate(table.columns[name]):
        if not isinstance(text, str) and not (isinstance(text, list) and text and isinstance(text[0], str)):
            raise GenboundError(
                f"{table.where!r}: column {name!r} of sample {row} holds {type(text).__name__}, no text"
            )
    return table.columns[name]


def _token_samples(spec: DataSpec, reader: Reader, table: Table, labels: Labels) -> TokenSamples:
    """Every column of lists with a name that models know is an input."""
    columns = table.columns
    inputs = {name: columns[name] for name in TOKENS if name in columns}
    inputs = {name: values for name, values in inputs.items() if len(values) and isinstance(values[0], list)}
    if "input_ids" not in inputs:
        raise GenboundError(
            f"data {spec.text!r} does not say which column is the text (add text=COL), "
            f"and {table.where!r} holds no tokens in 'input_ids'; it has {', '.join(map(str, columns))}"
        )
    padding = {"input_ids": reader.padding_token}
    side = getattr(reader.tokenizer, "padding_side", "right")
    if all(isinstance(values, StoredColumn) and values.holds == "numbers" for values in inputs.values()):
        rows: Sequence[dict[str, list[int]]] = _stored_rows(inputs)
        return TokenSamples(rows, labels, padding, side, reader.next_token, spec.text)
    for name, values in inputs.items():
        odd = next((i for i, value in enumerate(values) if not isinstance(value, list)), None)
        if odd is not None:
            raise GenboundError(f"{table.where!r}: column {name!r} of sample {odd} holds no list of tokens")
    rows = [_with_mask({name: inputs[name][i] for name in inputs}) for i in range(len(inputs["input_ids"]))]
    return TokenSamples(rows, labels, padding, side, reader.next_token, spec.text)


def _with_mask(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """A sample's tokens with the mask that the model wants, if none is there."""
    row.setdefault("attention_mask", [1] * len(row["input_ids"]))
    return row


def _stored_rows(inputs: Mapping[str, StoredColumn]) -> StoredColumn:
    """Rows of tokens that are put together when they are read."""
    first = inputs["input_ids"]
    return StoredColumn(lambda i: _with_mask({name: c[i] for name, c in inputs.items()}), len(first), "", "")
