"""Which samples are measured: what a data SPEC names, read with the checkpoint's own tokenizer or image settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genbound.data.data_files import encode_labels, parse_options, read_npz, read_table
from genbound.data.images import ImageSamples, make_transform, read_folder
from genbound.data.labels import read_labels
from genbound.data.samples import Batch, ListSamples, Samples, TensorSamples, as_samples
from genbound.data.texts import NextToken, TextSamples, TokenSamples
from genbound.errors import GenboundError
from genbound.user_code import call_user

__all__ = ["Batch", "ListSamples", "Reader", "Samples", "TensorSamples", "TextSamples", "as_samples", "load_data"]

TABLE = ("text", "text_pair", "label", "image", "max_length", "samples", "size", "mean", "std")


@dataclass(frozen=True)
class Reader:
    """What a checkpoint says about its data.

    Attributes:
        tokenizer: for text.
        images: image processor of transformers.
        label2id: the model's class names; labels that are strings are numbered in sorted order without it.
        numeric: labels are numbers and not classes (regression, several labels, a user's own loss).
        next_token: the model predicts the next token, whatever the data say.
    """

    tokenizer: Any = None
    images: Any = None
    label2id: Mapping[str, int] | None = None
    numeric: bool = False
    next_token: bool = False


def load_data(spec: Any, reader: Reader | None = None, base_dir: str | os.PathLike = ".") -> Samples:
    """Read the samples that a data SPEC names.

    Args:
        spec: ``npz:FILE[?x=NAME&y=NAME]``; ``imagefolder:DIR``; ``csv:|jsonl:|parquet:FILE?text=COL[&text_pair=COL]&label=COL``;
            ``hf:DIR`` or ``hf:NAME[/CONFIG]`` with ``?split=NAME`` and columns likewise; ``FILE.py:function`` or
            ``pkg.mod:function``; each also with ``samples=N`` for the first N. docs/data.md has all options. What is no
            string goes to :func:`~genbound.data.samples.as_samples`.
        reader: what the checkpoint says about its data.
        base_dir: what relative paths start from.

    Raises:
        GenboundError: the SPEC, the file or its content cannot be used; the message names the mend.
    """
    reader = reader or Reader()
    if not isinstance(spec, str):
        return _shifted(as_samples(spec), reader)
    place, _, query = spec.partition("?")
    scheme, colon, file = place.partition(":")
    path = Path(base_dir, file).expanduser()
    if scheme == "npz":
        return _shifted(_npz(spec, path, parse_options(spec, query, ("x", "y", "samples")), reader), reader)
    if scheme == "imagefolder" and file:
        return _image_folder(spec, path, parse_options(spec, query, ("samples", "size", "mean", "std")), reader)
    if scheme in ("csv", "jsonl", "parquet"):
        return _table(spec, scheme, path, parse_options(spec, query, TABLE), reader)
    if scheme == "hf" and file:
        options = parse_options(spec, query, (*TABLE, "split", "streaming"))
        return _hugging_face(spec, file, Path(base_dir), options, reader)
    if colon and (scheme.endswith(".py") or all(part.isidentifier() for part in scheme.split("."))) and file:
        options = parse_options(spec, query, ("samples",))
        return _shifted(as_samples(call_user(place, base_dir, "data function"), spec, options.get("samples")), reader)
    raise GenboundError(
        f"data {spec!r} is not understood: use npz:FILE, imagefolder:DIR, csv:FILE?text=COL&label=COL (or jsonl:, parquet:), "
        "hf:DIR, FILE.py:function or pkg.mod:function"
    )


def _shifted(samples: Samples, reader: Reader) -> Samples:
    """Labels beside their tokens, as transformers has them, go to the token before in a causal language model."""
    if not reader.next_token:
        return samples
    first = samples.batch([0])
    tokens = first.inputs.get("input_ids") if isinstance(first.inputs, dict) else first.inputs
    same = isinstance(tokens, torch.Tensor) and tokens.shape == first.targets.shape and first.targets.ndim == 2
    return NextToken(samples) if same else samples


def _npz(spec: str, path: Path, options: Mapping[str, Any], reader: Reader) -> Samples:
    inputs, targets, images = read_npz(path, options.get("x"), options.get("y"), raw_images=reader.images is not None)
    if images:
        return ImageSamples(list(inputs), targets, make_transform({}, reader.images), spec).head(options.get("samples"))
    return TensorSamples(inputs, targets.float() if reader.numeric else targets, spec).head(options.get("samples"))


def _image_folder(spec: str, path: Path, options: Mapping[str, Any], reader: Reader) -> Samples:
    files, names = read_folder(path)
    # Numbered over all classes before the first samples are taken, so that a class keeps its number.
    labels = encode_labels(names, str(path), reader.label2id, names=True)
    samples = ImageSamples(files, labels, make_transform(options, reader.images), spec).head(options.get("samples"))
    samples.label2id = dict(zip(names, labels.tolist(), strict=True))
    return samples


def _table(spec: str, scheme: str, path: Path, options: dict[str, Any], reader: Reader) -> Samples:
    wanted = [options[name] for name in ("text", "text_pair", "image") if name in options]
    wanted += options["label"].split(",") if "label" in options else []
    if not {"text", "image"} & set(options):
        if scheme == "csv" and "label" in options or reader.tokenizer is None and scheme == "csv":
            raise GenboundError(f"data {spec!r} does not say which column is the text: add text=COL after '?'")
        wanted = None  # tokenised already: every column with one list a row is an input
    if "label" not in options and not reader.next_token and wanted is not None:
        raise GenboundError(f"data {spec!r} does not say which column is the label: add label=COL after '?'")
    table = read_table(scheme, path, wanted, options.get("samples"))
    return _columns(spec, str(path), table, options, reader, reader.label2id, path.parent)


def _hugging_face(spec: str, name: str, folder: Path, options: dict[str, Any], reader: Reader) -> Samples:
    from genbound.data.hf_datasets import load_dataset

    streaming = options.get("streaming", "no")
    if streaming not in ("yes", "no"):
        raise GenboundError(f"data {spec!r}: streaming={streaming} is not understood; use streaming=yes")
    found = load_dataset(name, folder, options.get("split"), options.get("samples"), streaming == "yes")
    columns = list(found.column_names)
    for what, usual in (
        ("text", ("text", "sentence", "tokens", "words")), ("image", ("image", "img")),
        ("label", ("label", "labels", "ner_tags", "tags")),
    ):  # fmt: skip
        guess = next((column for column in usual if column in columns), None)
        if what not in options and guess is not None and not (what == "image" and "text" in options):
            if not (what == "text" and "input_ids" in columns):
                options[what] = guess
    for what in ("text", "text_pair", "image"):
        if what in options and options[what] not in columns:
            raise GenboundError(f"data {spec!r}: no column {options[what]!r}; the columns are {', '.join(columns)}")
    names = None
    if "label" in options and options["label"] in columns:
        feature = found.features[options["label"]]
        names = getattr(getattr(feature, "feature", feature), "names", None)
    table = {column: found[column] for column in columns} if "image" not in options else {
        column: (found[column] if column == options["image"] else list(found[column])) for column in columns
    }  # fmt: skip
    table = {column: values if column == options.get("image") else list(values) for column, values in table.items()}
    classes = reader.label2id if names is None else {label: index for index, label in enumerate(names)}
    return _columns(spec, f"hf:{name}", table, options, reader, classes, folder)


def _columns(
    spec: str, where: str, table: Mapping[str, Any], options: Mapping[str, Any], reader: Reader,
    classes: Mapping[str, int] | None, folder: Path,
) -> Samples:  # fmt: skip
    """Samples of a table's columns: text, images, or tokens."""
    tokens = not {"text", "image"} & set(options)
    label = options.get("label") or next((n for n in ("labels", "label") if tokens and n in table), None)
    for name in (label or "").split(",") if label else ():
        if name not in table:
            raise GenboundError(f"{where!r} has no column {name!r}; it has {', '.join(map(str, table))}")
    if label is None and not reader.next_token:
        raise GenboundError(f"data {spec!r} does not say which column is the label: add label=COL after '?'")
    labels = None
    if label is not None:
        columns = [table[name] for name in label.split(",")]
        words = (
            not tokens and len(table[options["text"]]) and isinstance(table[options["text"]][0], list)
            if "text" in options
            else tokens
        )
        labels = read_labels(columns, where, classes, reader.numeric, bool(words))
    if tokens:
        return _tokenised(spec, where, table, labels, reader)
    if "image" in options:
        images = table[options["image"]]
        files = (
            [folder / image if isinstance(image, str) else image for image in images]
            if isinstance(images, list)
            else images
        )
        return ImageSamples(files, labels, make_transform(options, reader.images), spec)
    for name in (options["text"], options.get("text_pair")):
        for row, text in enumerate(table.get(name, ())):
            if not isinstance(text, str) and not (isinstance(text, list) and text and isinstance(text[0], str)):
                raise GenboundError(f"{where!r}: column {name!r} of sample {row} holds {type(text).__name__}, no text")
    samples = TextSamples(
        table[options["text"]], table.get(options.get("text_pair")), labels, reader.tokenizer, options.get("max_length"), spec,
        reader.next_token,
    )  # fmt: skip
    if isinstance(labels, torch.Tensor) and labels.ndim == 1 and not labels.is_floating_point():
        named = dict(zip(map(str, table[label]), labels.tolist(), strict=True))
        samples.label2id = {**(reader.label2id or {}), **named}
    return samples


def _tokenised(spec: str, where: str, table: Mapping[str, Any], labels: Any, reader: Reader) -> Samples:
    inputs = {name: values for name, values in table.items() if len(values) and isinstance(values[0], list)}
    inputs = {name: values for name, values in inputs.items() if name not in ("labels", "label")}
    if "input_ids" not in inputs:
        raise GenboundError(
            f"data {spec!r} does not say which column is the text (add text=COL), and {where!r} holds no tokens in 'input_ids'; it "
            f"has {', '.join(map(str, table))}"
        )
    known = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    rows = [{name: inputs[name][i] for name in known if name in inputs} for i in range(len(inputs["input_ids"]))]
    for row in rows:
        row.setdefault("attention_mask", [1] * len(row["input_ids"]))
    pad = getattr(reader.tokenizer, "pad_token_id", None)
    side = getattr(reader.tokenizer, "padding_side", "right")
    return TokenSamples(rows, labels, {"input_ids": pad or 0}, side, reader.next_token, spec)
