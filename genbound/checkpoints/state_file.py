"""Files to tensors: read a checkpoint, whatever its container, without ever running its code."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from genbound.checkpoints.config_limits import read_json
from genbound.checkpoints.containers import Found, find_state
from genbound.checkpoints.measurable import measurable
from genbound.checkpoints.torch_files import read_torch
from genbound.checkpoints.weight_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    HF_WEIGHTS,
    SUFFIXES,
    of_index,
    weight_files,
)
from genbound.errors import GenboundError, printable

OTHER_KINDS = {
    ".h5": "Keras weights", ".msgpack": "Flax weights", ".onnx": "an ONNX graph",
    ".gguf": "quantised llama.cpp weights",
    ".pkl": "a pickle", ".zip": "an archive", ".tar": "an archive", ".gz": "an archive", ".npz": "NumPy arrays",
    ".pt2": "an exported program",
}  # fmt: skip


@dataclass(frozen=True)
class StateFile:
    """The tensors of one checkpoint.

    Attributes:
        path: file or directory, as given.
        sha256: of the bytes; for a directory, of the names and bytes of its weights and ``config.json``.
        tensors: the weights by the names in the file, of any shape, in the file's precision.
        config: ``config.json`` beside the weights, if it is that of a transformers or timm model.
        adapter: ``adapter_config.json`` of a PEFT adapter.
        hyper_parameters: arguments of the LightningModule that wrote the file.
        notes: what was done about precision, and which other weights the file holds.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        """The checkpoint's directory: itself, or the one that the file is in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def provenance(self) -> dict[str, str]:
        """Path and SHA-256, as ``results.json`` has them."""
        return {"path": str(self.path), "sha256": self.sha256}


def read_state(
    path: str | os.PathLike, entry: str | None = None, ignore: Iterable[str] = (), numbers: bool = True
) -> StateFile:
    """Read a checkpoint; no code in it is ever executed.

    Args:
        path: a ``.safetensors`` file; a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file, with whatever a training script
            keeps beside the weights; or a directory of Hugging Face (one file of weights or several shards), of PEFT,
            or with a single file of weights.
        entry: which entry of the file holds the weights, where there are several (``model_ema``).
        ignore: patterns of names to leave out.
        numbers: whether the weights are looked at. If not, nothing says whether they are finite, their digest is empty,
            and those of safetensors files stay on the disk.

    Raises:
        GenboundError: nothing there, not readable, pickled code, quantised, or a weight that is not finite.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise GenboundError(
            f"no checkpoint {str(path)!r}; check the path (a model of the Hugging Face hub must be "
            "downloaded first: hf download NAME --local-dir DIR)"
        )
    files = weight_files(path) if path.is_dir() else [path]
    found = _read_files(files, entry)
    _refuse_unseen(found.tensors, path)
    tensors, widened = measurable(_without(found.tensors, ignore), path, numbers)
    folder = path if path.is_dir() else path.parent
    described = path.is_dir() or path.name in HF_WEIGHTS or path.name in ADAPTER_WEIGHTS
    config, adapter = (_read_json(folder / name) if described else None for name in ("config.json", ADAPTER_CONFIG))
    if adapter is None:
        _refuse_adapter_without_scaling(tensors, path)
    if path.is_dir():
        files = [*files, *(folder / name for name in ("config.json", ADAPTER_CONFIG) if (folder / name).is_file())]
    return StateFile(
        path,
        _digest(path, files) if numbers else "",
        tensors,
        config if config and {"model_type", "architectures", "architecture"} & set(config) else None,
        adapter,
        found.hyper_parameters,
        (*found.notes, *widened),
    )


def _read_files(files: Iterable[Path], entry: str | None) -> Found:
    """The tensors of all files together: of one, or of the shards of one checkpoint."""
    tensors: dict[str, Tensor] = {}
    hyper_parameters: dict[str, Any] = {}
    notes: list[str] = []
    for file in files:
        if file.suffix == ".safetensors":
            tensors.update(of_index(file, _read_safetensors(file)))
        else:
            found = find_state(_read_other(file), file, entry)
            tensors.update(of_index(file, found.tensors))
            hyper_parameters |= found.hyper_parameters
            notes += found.notes
    return Found(tensors, hyper_parameters, tuple(notes))


def _refuse_unseen(names: Iterable[str], path: Path) -> None:
    """Names go into tables, plots and terminals."""
    odd = next((name for name in names if printable(name) != name or "\n" in name or "\t" in name), None)
    if odd is not None:
        raise GenboundError(
            f"checkpoint {str(path)!r} has a weight whose name has characters that cannot be seen ({odd[:100]!r}): no "
            "training script writes such names; rename it, or get the checkpoint elsewhere"
        )


def _refuse_adapter_without_scaling(tensors: Mapping[str, Tensor], path: Path) -> None:
    if any(".base_layer." in name for name in tensors) and any(".lora_" in name for name in tensors):
        raise GenboundError(
            f"checkpoint {str(path)!r} holds an adapter beside its base and not the adapter's scaling; save the PEFT "
            "model with save_pretrained(DIR), or merge it with merge_and_unload(), and give that"
        )


def _read_other(file: Path) -> Any:
    _not_empty(file)
    if file.name.endswith(SUFFIXES):
        return read_torch(file)
    kind = OTHER_KINDS.get(file.suffix.lower(), "something else")
    raise GenboundError(
        f"checkpoint {str(file)!r} is of no known kind: its name is that of {kind}; give a "
        ".safetensors, .pt, .pth, .bin or .ckpt file, or a Hugging Face directory"
    )


def _not_empty(file: Path) -> None:
    if file.stat().st_size == 0:
        raise GenboundError(f"checkpoint {str(file)!r} is empty (0 bytes); copy or download it again")
    with file.open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise GenboundError(f"{str(file)!r} is a Git LFS pointer, not the weights; download them: git lfs pull")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _not_empty(file)
    try:
        return load_file(file)  # checks the header against the size of the file before it allocates
    except (
        SafetensorError,
        ValueError,
        KeyError,
        OSError,
        TypeError,
        AttributeError,
        RuntimeError,
        RecursionError,
    ) as error:
        raise GenboundError(
            f"{str(file)!r} is no complete safetensors file ({str(error)[:200]}); copy or download it again"
        ) from error


def _without(tensors: dict[str, Tensor], ignore: Iterable[str]) -> dict[str, Tensor]:
    patterns = tuple(ignore)
    return {name: t for name, t in tensors.items() if not any(fnmatchcase(name, pattern) for pattern in patterns)}


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    content = read_json(file)
    return content if isinstance(content, dict) else None


def _digest(path: Path, files: Iterable[Path]) -> str:
    sha = hashlib.sha256()
    for file in sorted(files):
        if path.is_dir():
            sha.update(f"{file.name}|".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                sha.update(chunk)
    return sha.hexdigest()
