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


def import_library(name: str) -> Any:
    """timm or torchvision, or one line on why not: a build for another torch fails with more than an ImportError."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = first_line(error)
        raise GenboundError(
            f"{name.partition('.')[0]} cannot be imported ({reason}): pip install genbound[{name.partition('.')[0]}], "
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


def _refuse_foreign(library: str, name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what makes timm read or fetch other files; a checkpoint's config.json may say anything."""
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
