"""How an image becomes what a model takes: as the checkpoint says, as the data SPEC says, or as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.data.sample_parts import Inputs
from genbound.errors import GenboundError

RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def make_transform(
    options: Mapping[str, Any], processor: Any = None, settings: Mapping[str, Any] | None = None
) -> Callable[[Any], Inputs]:
    """How an image becomes what the model takes.

    What the checkpoint says: its image processor, or else its settings in timm's words. Each option takes the place of
    what these say about the same. Without any of them, RGB values are divided by 255.

    Args:
        options: those of the data SPEC: ``size``, to which the shorter side is scaled before the middle is cut out,
            ``mean`` and ``std`` of the colours.
        processor: image processor of transformers.
        settings: ``input_size [3, N, N]``, ``crop_pct`` or ``resize``, ``interpolation``, ``mean`` and ``std``.

    Returns:
        Pillow image in RGB -> float32 ``[3, H, W]``, or the processor's ``pixel_values``.
    """
    if processor is not None:
        return _processed(options, processor)
    said = _checked(settings or {})
    size = options.get("size") or said.get("size")
    # The middle of a larger picture, as timm and torchvision have it, unless the size is the user's.
    scaled = size if "size" in options else said.get("scaled")
    mean, std = options.get("mean") or said.get("mean"), options.get("std") or said.get("std")
    resample, squash = said.get("resample", RESAMPLING["bilinear"]), said.get("squash", False)

    def transform(image: Any) -> Tensor:
        if size is not None:
            image = _resized(image, size, scaled, resample, squash and "size" not in options)
        tensor = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
        if mean is not None:
            tensor = tensor - torch.tensor(mean).view(-1, 1, 1)
        return tensor if std is None else tensor / torch.tensor(std).view(-1, 1, 1)

    return transform


def _processed(options: Mapping[str, Any], processor: Any) -> Callable[[Any], Inputs]:
    """What the processor makes of an image, with the options in the place of its own."""
    size = options.get("size")
    given: dict[str, Any] = {} if size is None else {"do_resize": False, "do_center_crop": False}
    for name in {"mean", "std"} & set(options):
        given |= {f"image_{name}": options[name], "do_normalize": True}
    known = {name: value for name, value in given.items() if hasattr(processor, name)}

    def transform(image: Any) -> Inputs:
        if size is not None:
            image = _resized(image, size, size, RESAMPLING["bilinear"], False)
        found = processor(images=image, return_tensors="np", **known)
        return {name: torch.as_tensor(np.asarray(value[0])) for name, value in found.items() if name == "pixel_values"}

    return transform


def _resized(image: Any, size: int, scaled: int | None, resample: int, squash: bool) -> Any:
    """The middle ``size x size`` of a Pillow image whose shorter side (squashed: each side) is scaled to ``scaled``."""
    scaled = scaled or size
    short = min(image.size)
    wide, high = (scaled if squash else max(scaled, int(scaled * side / short)) for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return image.resize((wide, high), resample=resample).crop((left, top, left + size, top + size))


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in timm's words as sizes in pixels; they may come out of a file, where anything may stand.

    Raises:
        GenboundError: they are no settings of square images in colours.
    """
    found: dict[str, Any] = {}
    for name in ("mean", "std"):
        if (value := settings.get(name)) is not None:
            found[name] = _numbers(value, 3, name)
    if (value := settings.get("input_size")) is not None:
        _, high, wide = _numbers(value, 3, "input_size")
        if high != wide or not 1 <= high <= 4096 or high != int(high):
            raise _refusal(f"input_size {value!r:.40}")
        found["size"] = int(high)
        part = _numbers([settings.get("crop_pct") or 1.0], 1, "crop_pct")[0]
        if not 0.1 <= part <= 1:
            raise _refusal(f"crop_pct {part:g}")
        found["scaled"] = int(settings.get("resize") or math.floor(high / part))
        found["squash"] = settings.get("crop_mode") == "squash"
        if settings.get("crop_mode") not in (None, "", "center", "squash"):
            raise _refusal(f"crop_mode {settings['crop_mode']!r:.40}")
        kind = settings.get("interpolation") or "bilinear"
        if kind not in RESAMPLING:
            raise _refusal(f"interpolation {kind!r:.40}")
        found["resample"] = RESAMPLING[kind]
    return found


def _numbers(value: Any, count: int, name: str) -> list[float]:
    good = isinstance(value, list | tuple) and len(value) == count
    if not good or not all(
        isinstance(n, int | float) and math.isfinite(n) and (n > 0 or name == "mean") for n in value
    ):
        raise _refusal(f"{name} {value!r:.60}")
    return [float(n) for n in value]


def _refusal(what: str) -> GenboundError:
    return GenboundError(
        f"the checkpoint wants its images prepared in a way that is not known here ({what}): say size=, mean= and std= "
        "behind the data SPEC, or give a function of your own, --data FILE.py:function"
    )
