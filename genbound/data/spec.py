"""What is said about samples: by a data SPEC, and by the checkpoint that is measured on them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from genbound.errors import GenboundError

FUNCTION = "function"  # FILE.py:function and pkg.mod:function, which have no scheme of their own
COLUMNS = ("text", "text_pair", "label", "image", "max_length", "samples", "size", "mean", "std")
# Scheme -> the options that it takes behind the "?".
OPTIONS: dict[str, tuple[str, ...]] = {
    "npz": ("x", "y", "samples", "size", "mean", "std"),
    "imagefolder": ("samples", "size", "mean", "std"),
    "csv": COLUMNS,
    "jsonl": COLUMNS,
    "parquet": COLUMNS,
    "hf": (*COLUMNS, "split", "streaming"),
    "webdataset": COLUMNS,
    "run": ("samples",),
    FUNCTION: ("samples",),
}


@dataclass(frozen=True)
class Reader:
    """What a checkpoint says about its data.

    Attributes:
        tokenizer: for text.
        images: image processor of transformers.
        image_settings: how images are prepared without one, in timm's words (see
            :func:`~genbound.data.image_transforms.make_transform`).
        label2id: the model's class names; labels that are strings are numbered in sorted order without it.
        numeric: labels are numbers and not classes (regression, several labels, a user's own loss).
        next_token: the model predicts the next token, whatever the data say.
        labelled: labels are wanted; tables without a column of them are read as well where they are not.
        trust_remote_code: code may be run that files name and not the user.
        padding: the token that the model takes for padding; the tokenizer's without it.
    """

    tokenizer: Any = None
    images: Any = None
    image_settings: Mapping[str, Any] | None = None
    label2id: Mapping[str, int] | None = None
    numeric: bool = False
    next_token: bool = False
    labelled: bool = True
    trust_remote_code: bool = False
    padding: int | None = None

    @property
    def padding_token(self) -> int:
        """What ``input_ids`` are padded with; a tokenizer without a token for it pads with its end of text."""
        named = (self.padding, *(getattr(self.tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")))
        return next((token for token in named if token is not None), 0)


@dataclass(frozen=True)
class DataSpec:
    """What a data SPEC says.

    Attributes:
        text: the SPEC as it was given, for messages and for the record.
        scheme: a key of :data:`OPTIONS`.
        place: what stands behind the scheme: a file, a directory, a name, or ``FILE.py:function``.
        options: those behind the ``?``, counts as numbers and colours as three of them.
        base_dir: what relative paths start from.
    """

    text: str
    scheme: str
    place: str
    options: Mapping[str, Any] = field(default_factory=dict)
    base_dir: Path = Path(".")

    @classmethod
    def parse(cls, text: str, base_dir: str | os.PathLike = ".") -> DataSpec:
        """Take a SPEC apart.

        Args:
            text: see :func:`~genbound.data.load_data.load_data`.
            base_dir: what relative paths start from.

        Raises:
            GenboundError: an unknown scheme or option, or a value that the option does not take.

        Example:
            >>> spec = DataSpec.parse("csv:reviews.csv?text=body&label=stars&samples=100")
            >>> spec.scheme, spec.place, dict(spec.options)
            ('csv', 'reviews.csv', {'text': 'body', 'label': 'stars', 'samples': 100})
        """
        place, _, query = text.partition("?")
        scheme, colon, rest = place.partition(":")
        if colon and rest and scheme in OPTIONS and scheme != FUNCTION:
            return cls(text, scheme, rest, _options(text, query, OPTIONS[scheme]), Path(base_dir))
        if colon and rest and (scheme.endswith(".py") or all(part.isidentifier() for part in scheme.split("."))):
            return cls(text, FUNCTION, place, _options(text, query, OPTIONS[FUNCTION]), Path(base_dir))
        raise GenboundError(
            f"data {text!r} is not understood: use npz:FILE, imagefolder:DIR, "
            "csv:FILE?text=COL&label=COL (or jsonl:, parquet:), hf:DIR, webdataset:DIR, run:DIR, FILE.py:function or "
            "pkg.mod:function"
        )

    @property
    def path(self) -> Path:
        """The file or directory."""
        return Path(self.base_dir, self.place).expanduser()

    @property
    def samples(self) -> int | None:
        """How many of the first samples are wanted; ``None`` for all."""
        return self.options.get("samples")

    def existing_file(self) -> Path:
        """The path if it is that of a file with something in it.

        Raises:
            GenboundError: it is not.
        """
        path = self.path
        if not path.exists():
            raise GenboundError(f"no data file {str(path)!r}; check the path in {self.text!r}")
        if not path.is_file():
            raise GenboundError(f"{str(path)!r} is not a file; name the file itself, not {self.text!r}")
        if path.stat().st_size == 0:
            raise GenboundError(f"data file {str(path)!r} is empty (0 bytes); write it again")
        return path


def _options(text: str, query: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if name not in allowed or not equals or not value:
            raise GenboundError(f"data {text!r}: option {part!r} is not understood; there are {'=, '.join(allowed)}=")
        options[name] = unquote(value)
    for name in {"samples", "max_length", "size"} & set(options):
        if not re.fullmatch(r"0*[1-9][0-9]{0,11}", options[name]):
            raise GenboundError(f"data {text!r}: {name}={options[name]} is no positive whole number")
        options[name] = int(options[name])
    for name in {"mean", "std"} & set(options):
        try:
            options[name] = [float(number) for number in options[name].split(",")]
        except ValueError:
            options[name] = []
        if len(options[name]) != 3 or (name == "std" and min(options[name]) <= 0):
            raise GenboundError(f"data {text!r}: {name}= needs three numbers with commas, one a colour")
    return options
