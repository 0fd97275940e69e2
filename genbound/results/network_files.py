"""A network that a measurement made of the fine-tuned one, as a checkpoint beside the results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from genbound.files import write_atomically, write_json

# What makes weights of a directory of Hugging Face a model that can be loaded, beside its config.json.
BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
ADAPTER = "adapter_config.json"


def save_network(
    folder: Path, tensors: Mapping[str, np.ndarray], sources: Sequence[str], config: Mapping[str, Any] | None = None
) -> list[str]:
    """Write ``model.safetensors``, and what describes the model where its checkpoint does.

    Args:
        folder: the checkpoint to be.
        tensors: the whole state of the network, by name ``[*shape]``.
        sources: the checkpoint that was measured, and what it started from: tokenizers are looked for in this order.
        config: of a model of transformers, for a checkpoint whose own would describe other weights.

    Returns:
        The names of the files in the folder.
    """
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(whole, path, metadata={"format": "pt"}))
    folders = [Path(source) for source in sources]
    # The weights of an adapter are merged here: its own config, where it has one, would describe other ones.
    if folders and (folders[0] / "config.json").is_file() and not (folders[0] / ADAPTER).is_file():
        config, folders = json.loads((folders[0] / "config.json").read_text(encoding="utf-8")), folders[:1]
    if config is None:
        return ["model.safetensors"]
    write_json(folder / "config.json", _typed(config, whole))
    beside = next((files for path in folders if (files := _beside(path))), [])
    for file in beside:
        write_atomically(folder / file.name, partial(shutil.copyfile, file))
    return ["model.safetensors", "config.json", *(file.name for file in beside)]


def _beside(folder: Path) -> list[Path]:
    return [folder / name for name in BESIDE if (folder / name).is_file()]


def remove_networks(folder: Path, names: Iterable[str]) -> None:
    """Remove networks of earlier results: what lies beside results must be what they are about.

    Args:
        folder: of the results.
        names: files below it that genbound wrote then; those that are no part of a network are left.
    """
    for name in names:
        parts = name.split("/")
        if len(parts) == 2 and parts[0].isidentifier() and parts[1] in ("model.safetensors", "config.json", *BESIDE):
            (folder / name).unlink(missing_ok=True)


def _typed(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The model's config with the type of these weights: in another one they are another network."""
    kinds = {tensor.dtype.name for tensor in tensors.values() if tensor.dtype.kind == "f"}
    dtypes = {key: kind for key in ("dtype", "torch_dtype") if key in config for kind in kinds}
    return {**config, **dtypes}
