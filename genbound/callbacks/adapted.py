"""A model in training that has an adapter of PEFT: its base at the start, and its merged weights at the end.

What is measured is the merged network, as ``genbound evaluate`` measures it from the files, and never the adapter's
matrices as layers of their own.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.adapter_merging import merge_attached

BASE = "genbound_base"


def is_adapted(model: nn.Module) -> bool:
    """Whether the model is one of ``peft.get_peft_model``."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload") and hasattr(model, "get_base_model")


def base_at_start(model: Any) -> nn.Module:
    """A copy of the network that the adapter was put on, with the first values of what is trained in full beside it."""
    with huggingface.quiet():
        return copy.deepcopy(model).cpu().unload()


def merged(model: Any) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]:
    """A merged copy in float32, and the two factors of every displacement that plain LoRA made."""
    network, factors, _ = merge_attached(copy.deepcopy(model).cpu().float())
    return network, factors


def save_base(base: Any, folder: Path) -> str | None:
    """Write a transformers base as a directory of its own; ``None`` for another module, whose weights are a file."""
    if not hasattr(base, "save_pretrained"):
        return None
    base.save_pretrained(folder / BASE)
    return BASE
