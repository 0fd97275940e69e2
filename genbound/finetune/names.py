"""One name for a weight, whatever wraps the network that holds it."""

from __future__ import annotations

import re

_ADAPTER = re.compile(r"(^|\.)lora_")


def plain_name(name: str) -> str:
    """The name in the bare network.

    ``module.`` (data parallel) and ``_orig_mod.`` (torch.compile) go, and what PEFT adds: ``base_model.model.``,
    ``.base_layer.`` and ``.modules_to_save.NAME.``.

    Example:
        >>> plain_name("module.base_model.model.encoder.query.base_layer.weight")
        'encoder.query.weight'
        >>> plain_name("base_model.model.classifier.modules_to_save.default.weight")
        'classifier.weight'
    """
    name = name.replace("_orig_mod.", "")
    while name.startswith(("module.", "base_model.model.")):
        name = name.removeprefix("module.").removeprefix("base_model.model.")
    name = re.sub(r"\.base_layer\.", ".", name)
    return re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)


def is_adapter(name: str) -> bool:
    """The parameter is a factor of an adapter, or PEFT's frozen copy of a module that is trained in full."""
    return bool(_ADAPTER.search(name)) or ".original_module." in name
