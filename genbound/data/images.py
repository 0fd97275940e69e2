"""Images as samples: opened when they are needed, preprocessed as the checkpoint says."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.data.image_transforms import make_transform
from genbound.data.labels import encode_labels, label_numbering
from genbound.data.sample_parts import Inputs, leaves
from genbound.data.samples import Samples
from genbound.data.spec import DataSpec, Reader
from genbound.errors import GenboundError
from genbound.optional import import_optional

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MOST_PIXELS = 89_478_485  # above it Pillow warns of a decompression bomb


class ImageSamples(Samples):
    """Images and their classes.

    Args:
        images: paths, Pillow images, or uint8 arrays H×W×3.
        labels: one a sample.
        transform: Pillow image in RGB -> what the model takes for it.
    """

    def __init__(self, images: Sequence, labels: Any, transform: Callable[[Any], Inputs], spec: str = ""):
        super().__init__(len(images), spec)
        if len(labels) != len(images):
            raise GenboundError(f"{len(images)} images but {len(labels)} labels: give one for each image")
        self._images, self._labels, self._transform = images, torch.as_tensor(labels), transform
        self._keys: dict[int, Hashable] = {}

    def _item(self, i: int) -> tuple[Inputs, Tensor]:
        inputs = self._transform(_opened(self._images[i], f"sample {i} of {self.spec or 'the images'}"))
        return inputs, self._labels[i]

    def label(self, i: int) -> int | float | None:
        """The label, read without the image."""
        label = self._labels[i]
        return label.item() if label.ndim == 0 else None

    def shown(self, i: int) -> str:
        """The file's path, where the image is one."""
        image = self._images[i]
        return str(image) if isinstance(image, str | Path) else ""

    def shape_key(self, i: int) -> Hashable:
        """The shapes of the sample's inputs; images of one size share a batch."""
        if i not in self._keys:
            inputs, _ = self._item(i)
            self._keys[i] = tuple((name, tuple(tensor.shape)) for name, tensor in leaves(inputs))
        return self._keys[i]


def _opened(image: Any, where: str) -> Any:
    """A Pillow image in RGB."""
    pillow = import_optional("PIL.Image", "images need Pillow", "genbound[images]")
    if isinstance(image, np.ndarray):
        return pillow.fromarray(image)
    if isinstance(image, Mapping) and image.get("bytes"):  # how a parquet file holds an image
        image = io.BytesIO(image["bytes"])
    try:
        return _in_rgb(image, where) if hasattr(image, "convert") else _decoded(pillow, image, where)
    except GenboundError:
        raise
    except Exception as error:  # Pillow's readers raise whatever their format's decoder does
        shown = str(image) if isinstance(image, str | Path) else where
        raise GenboundError(f"{shown!r} is no readable image ({error}); remove it or save it again") from error


def _decoded(pillow: Any, image: Any, where: str) -> Any:
    """A file's image in RGB, unless it has more pixels than an image has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own limit on pixels, which is an error here
        found = pillow.open(image)
    with found as opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise GenboundError(
                f"{where} has {opened.width} x {opened.height} pixels, as a decompression bomb has; make it smaller"
            )
        return _in_rgb(opened, where)


def _in_rgb(image: Any, where: str) -> Any:
    """An image in 8 bits of red, green and blue; Pillow itself would cut grey values of 16 bits off at 255."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise GenboundError(
            f"{where} has grey values that are no 8 or 16 bits (mode {image.mode}); scale it and save it as a png"
        )
    grey = (values.astype(np.uint32) * 255 + 32767) // 65535  # rounded
    return (
        import_optional("PIL.Image", "images need Pillow", "genbound[images]")
        .fromarray(grey.astype(np.uint8))
        .convert("RGB")
    )


def read_folder(folder: Path) -> tuple[list[Path], list[str]]:
    """The images of ``folder/CLASS/…`` and the class of each, in sorted order.

    Raises:
        GenboundError: no such directory, no classes, or no images.
    """
    if not folder.is_dir():
        raise GenboundError(f"no directory {str(folder)!r}; imagefolder: needs one directory a class, DIR/CLASS/IMAGE")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    images = {path: sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES) for path in classes}
    splits = [path.name for path in classes if path.name in ("train", "test", "val", "valid", "validation")]
    if splits:
        raise GenboundError(
            f"{str(folder)!r} holds splits, not classes; name one of them: imagefolder:{folder / splits[0]}"
        )
    empty = [path.name for path, found in images.items() if not found]
    if not classes or len(empty) == len(classes):
        raise GenboundError(
            f"{str(folder)!r} has no images in directories of classes; arrange them as DIR/CLASS/IMAGE.png"
        )
    if empty:
        raise GenboundError(f"class {empty[0]!r} of {str(folder)!r} has no images; remove its directory or fill it")
    files = [file for path in classes for file in images[path]]
    return files, [path.name for path in classes for _ in images[path]]


def folder_samples(spec: DataSpec, reader: Reader) -> ImageSamples:
    """The samples of an image folder: a directory a class."""
    files, names = read_folder(spec.path)
    # Numbered over all classes before the first samples are taken, so that a class keeps its number.
    labels = encode_labels(names, str(spec.path), reader.label2id, names=True)
    samples = ImageSamples(
        files, labels, make_transform(spec.options, reader.images, reader.image_settings), spec.text
    ).head(spec.samples)
    samples.label2id = label_numbering(names, labels, reader.label2id)
    return samples
