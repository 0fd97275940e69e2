"""Architectures of timm and torchvision by name, with as many classes as the checkpoint has."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genbound.checkpoints.heads import head_names
from genbound.checkpoints.names import strip_prefixes
from genbound.errors import GenboundError, first_line

LIBRARIES = ("timm", "torchvision")


PRESET = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")


def import_library(name: str) -> Any:
    """timm or torchvision, or one line on why not: a build for another torch fails with more than an ImportError."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = first_line(error)
        library = name.partition(".")[0]
        raise GenboundError(
            f"{library} cannot be imported ({reason}): pip install 'genbound[{library}]', "
            "with the torchvision that was built for this torch, or write a factory and say --model FILE.py:factory"
        ) from error


def vision_model(
    library: str, name: str, tensors: Mapping[str, Tensor], arguments: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
) -> tuple[nn.Module, Callable[[], nn.Module]]:  # fmt: skip
    """The network ``name`` without pretrained weights, and a function that builds it again.

    Args:
        library: ``timm`` or ``torchvision``.
        name: as in ``timm.create_model`` or ``torchvision.models.get_model``.
        tensors: the checkpoint; its last layer's weight, ``[K, ...]``, says how many classes there are.
        arguments: further arguments of the constructor.
        num_classes: by default as many as the checkpoint has.
    """
    _refuse_foreign(library, name, arguments or {})
    module = import_library(library if library == "timm" else "torchvision.models")
    given = dict(arguments or {})

    def build(**more: Any) -> nn.Module:
        try:
            if library == "timm":
                return module.create_model(name, pretrained=False, **{**given, **more})
            return module.get_model(name, weights=None, **{**given, **more})
        except Exception as error:
            reason = first_line(error)
            raise GenboundError(f"{library} cannot build {name!r}: {reason}; check the name after --model") from error

    if num_classes is None:
        with torch.device("meta"):
            num_classes = _classes(build(), tensors)
    sized = {} if num_classes is None else {"num_classes": num_classes}
    return build(**sized), lambda: build(**sized)


def preset(library: str, name: str) -> Mapping[str, Any]:
    """How the library's own pretrained weights of that name want images, in timm's words; empty where it has none."""
    if library == "timm":
        module = import_library("timm")
        known = getattr(module.models if hasattr(module, "models") else module, "get_pretrained_cfg", lambda name: None)
        found = known(name)
        return {} if found is None else {key: getattr(found, key, None) for key in PRESET if hasattr(found, key)}
    weights = getattr(import_library("torchvision.models"), "get_model_weights", lambda name: None)(name)
    if not weights:
        return {}
    transform = weights.DEFAULT.transforms()
    size, resized = transform.crop_size[0], transform.resize_size[0]
    mean, std, kind = transform.mean, transform.std, transform.interpolation.value
    return {"input_size": [3, size, size], "resize": resized, "mean": mean, "std": std, "interpolation": kind}


def _refuse_foreign(library: str, name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what makes timm read or fetch other files; a checkpoint's config.json may say anything."""
    if ":" in name:
        raise GenboundError(
            f"{library}:{name:.80} would be fetched, and nothing is downloaded: download the model's directory and "
            f"give it as CKPT or INIT, or say --model {library}:NAME with a plain name"
        )
    if not re.fullmatch(r"[\w.-]+", name):
        raise GenboundError(f"{library} model {name!r:.80} is no plain name; name one that {library} has")
    for key, value in arguments.items():
        if key.startswith(("pretrained", "checkpoint", "cache", "features")) or not _plain(value):
            raise GenboundError(f"config.json has model_args {key!r}, which is no size or switch of a {library} model")


def _plain(value: Any) -> bool:
    """A number of reasonable size, a switch, a word, or some of these."""
    if isinstance(value, list):
        return len(value) < 100 and all(map(_plain, value))
    if isinstance(value, str):
        return len(value) < 100 and re.fullmatch(r"[\w.-]*", value) is not None
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= 1 << 20)


def _classes(model: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of the head in the file, where they are not those that the library builds by default."""
    named = dict(model.named_parameters())
    found = {name: tensors[key] for key, name in strip_prefixes(tensors, named).items() if name in head_names(model)}
    rows = {len(tensor) for name, tensor in found.items() if tensor.ndim and tensor.shape[0] != named[name].shape[0]}
    return rows.pop() if len(rows) == 1 else None
