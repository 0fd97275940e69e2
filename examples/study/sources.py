"""Where the study's samples come from: labels, contents and samples of a file by their places."""

from __future__ import annotations

import csv
import os
import runpy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from genbound.data import Samples, TensorSamples, TextSamples
from genbound.finetune.start import text_reader

DEMO = Path(__file__).parent.parent / "demo"


class Source(ABC):
    """Files with labelled samples; a split is the name of one."""

    @abstractmethod
    def labels(self, split: str) -> np.ndarray:
        """All class numbers ``[N]``."""

    @abstractmethod
    def contents(self, split: str) -> Sequence[bytes]:
        """What tells one sample from another, without its label."""

    @abstractmethod
    def samples(self, split: str, places: np.ndarray, init: Path) -> Samples:
        """The samples at these places; texts with the tokenizer of ``init``."""


def data(name: str) -> Path:
    """A file of ``STUDY_DATA``."""
    return Path(os.environ["STUDY_DATA"]) / name


@cache
def _images(split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(data(f"cifar10_{split}.npz")) as file:
        return file["x"], file["y"]


class Images(Source):
    """CIFAR-10, enlarged to a number of pixels.

    Args:
        pixels: on a side.
        first: the first class that is taken; it becomes class 0. With one, there are the five classes from it on.
    """

    def __init__(self, pixels: int, first: int | None = None):
        self.pixels, self.first = pixels, first

    def _file(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        x, y = _images(split)
        if self.first is None:
            return x, y
        chosen = (y >= self.first) & (y < self.first + 5)
        return x[chosen], y[chosen] - self.first

    def labels(self, split: str) -> np.ndarray:
        """All class numbers ``[N]``."""
        return self._file(split)[1]

    def contents(self, split: str) -> Sequence[bytes]:
        """The pixels."""
        return [image.tobytes() for image in self._file(split)[0]]

    def samples(self, split: str, places: np.ndarray, init: Path) -> Samples:
        """Images ``[N, 3, pixels, pixels]`` in about [-1, 1]."""
        x, y = self._file(split)
        images = torch.from_numpy(x[places]).permute(0, 3, 1, 2).float()
        if self.pixels != images.shape[-1]:
            images = nn.functional.interpolate(
                images, size=(self.pixels, self.pixels), mode="bilinear", align_corners=False
            )
        return TensorSamples((images - 127) / 128, torch.from_numpy(y[places]), f"CIFAR-10 {split}")


class Texts(Source):
    """Sentences, or pairs of them, at their full length.

    Args:
        name: how the files' names begin.
        first, second: columns of the texts.
    """

    def __init__(self, name: str, first: str, second: str | None = None):
        self.name, self.first, self.second = name, first, second

    @cache  # noqa: B019 - a handful of them live as long as the process
    def rows(self, split: str) -> list[dict[str, str]]:
        """The lines of the file, by column."""
        with data(f"{self.name}_{split}.csv").open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def labels(self, split: str) -> np.ndarray:
        """All class numbers ``[N]``."""
        return np.array([int(row["label"]) for row in self.rows(split)])

    def contents(self, split: str) -> Sequence[bytes]:
        """The texts, whatever their case and spaces."""
        columns = [self.first, *([self.second] if self.second else [])]
        rows = self.rows(split)
        return ["\n".join(" ".join(row[c].lower().split()) for c in columns).encode() for row in rows]

    def samples(self, split: str, places: np.ndarray, init: Path) -> Samples:
        """Tokens."""
        rows = [self.rows(split)[i] for i in places]
        pairs = None if self.second is None else [row[self.second] for row in rows]
        labels = torch.tensor([int(row["label"]) for row in rows])
        return TextSamples(
            [row[self.first] for row in rows], pairs, labels, text_reader(init).tokenizer, None, f"{self.name} {split}"
        )


class Digits(Source):
    """The digits 5–9 of scikit-learn's handwritten digits, one file."""

    @cache  # noqa: B019 - a handful of them live as long as the process
    def _file(self) -> tuple[torch.Tensor, torch.Tensor]:
        return runpy.run_path(str(DEMO / "data.py"))["digits"](5)

    def labels(self, split: str) -> np.ndarray:
        """All class numbers ``[N]``."""
        return self._file()[1].numpy()

    def contents(self, split: str) -> Sequence[bytes]:
        """The pixels."""
        return [image.tobytes() for image in self._file()[0].numpy()]

    def samples(self, split: str, places: np.ndarray, init: Path) -> Samples:
        """Images ``[N, 1, 8, 8]`` in [0, 1]."""
        x, y = self._file()
        return TensorSamples(x[places], y[places], "digits 5-9")
