"""Files to tensors: read a checkpoint, whatever its container, without ever running its code."""

import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genbound.alignment import Alignment, Signature, align, strip_prefixes
from genbound.errors import GenboundError

__all__ = ["Alignment", "Signature", "StateFile", "align", "read_state", "strip_prefixes"]

HF_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONTAINERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class StateFile:
    """The tensors of one checkpoint.

    Attributes:
        path: file or directory, as given.
        sha256: of the bytes; for a directory, of the names and bytes of its weights and ``config.json``.
        tensors: the weights, by the names in the file.
        config: ``config.json`` beside the weights, if it is that of a transformers model.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None = None

    @property
    def directory(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def provenance(self) -> dict[str, str]:
        return {"path": str(self.path), "sha256": self.sha256}


def read_state(path: str | os.PathLike) -> StateFile:
    """Read a checkpoint; no code in it is ever executed.

    Args:
        path: a ``.safetensors`` file, a ``.pt``/``.pth``/``.bin``/``.ckpt`` file with tensors only, or a
            Hugging Face directory, with one file of weights or several shards.

    Raises:
        GenboundError: nothing there, not readable, pickled code, or a weight that is not finite.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise GenboundError(
            f"no checkpoint {str(path)!r}; check the path (a model of the Hugging Face hub must be "
            "downloaded first: hf download NAME --local-dir DIR)"
        )
    files = _weight_files(path) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(_read_file(file))
    if not tensors:
        raise GenboundError(f"checkpoint {str(path)!r} holds no tensors; save a state dict")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(_comparable(tensor)).all():
            raise GenboundError(
                f"checkpoint {str(path)!r}: weight {name!r} has NaN or infinite entries; the training "
                "diverged or the file is damaged, use an earlier checkpoint"
            )
    config = path / "config.json" if path.is_dir() else path.with_name("config.json")
    if path.is_dir() and config.is_file():
        files = [*files, config]
    described = path.is_dir() or path.name in HF_WEIGHTS
    return StateFile(path, _digest(path, files), tensors, _read_config(config) if described else None)


def _comparable(tensor: Tensor) -> Tensor:
    # isfinite is not written for the 8-bit types
    return tensor.float() if tensor.element_size() == 1 else tensor


def _weight_files(folder: Path) -> list[Path]:
    for name in HF_WEIGHTS:
        file = folder / name
        if not file.is_file():
            continue
        if not name.endswith(".index.json"):
            return [file]
        try:
            shards = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GenboundError(f"{str(file)!r} is no readable index of shards; download it again") from error
        absent = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
        if absent or not shards:
            raise GenboundError(f"{str(folder)!r} lacks shard {(absent or ['(none named)'])[0]!r}; download it again")
        return [folder / shard for shard in shards]
    if (folder / "adapter_config.json").is_file():
        raise GenboundError(
            f"{str(folder)!r} holds a PEFT adapter, which is planned but not read yet: merge it with "
            "merge_and_unload() and save_pretrained() the result"
        )
    loose = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".pt", ".pth", ".bin"))
    raise GenboundError(
        f"directory {str(folder)!r} has no weights (looked for {', '.join(HF_WEIGHTS)}); "
        + (f"name the file itself, e.g. {loose[0]}" if loose else "give the checkpoint's file or directory")
    )


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.stat().st_size == 0:
        raise GenboundError(f"checkpoint {str(file)!r} is empty (0 bytes); copy or download it again")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return _unwrap(_read_pickle(file), file)
    raise GenboundError(
        f"checkpoint {str(file)!r} is of no known kind; give a .safetensors, .pt, .pth or .bin file, or a "
        "Hugging Face directory"
    )


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise GenboundError(
            f"{str(file)!r} is no complete safetensors file ({error}); copy or download it again"
        ) from error


def _read_pickle(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch refuses foreign classes with the same exception that damaged bytes give.
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise GenboundError(
                f"{str(file)!r} is a pickle with more than tensors in it; pickled code is never executed: "
                "save model.state_dict() as safetensors (safetensors.torch.save_file) and give that"
            ) from error
        raise GenboundError(f"{str(file)!r} is no readable torch file (damaged?); save it again") from error
    except Exception as error:  # torch.load raises whatever zipfile, pickle and its own C++ reader do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GenboundError(
            f"{str(file)!r} is no readable torch file ({reason}); save it again, best as safetensors"
        ) from error


def _unwrap(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict inside the containers that training scripts save."""
    if not isinstance(content, Mapping):
        raise GenboundError(f"{str(file)!r} holds a {type(content).__name__}, no state dict; save model.state_dict()")
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        return tensors
    found = [name for name in CONTAINERS if isinstance(content.get(name), Mapping)]
    if len(found) != 1:
        what = f"both {' and '.join(found)}" if found else ", ".join(map(str, content)) or "nothing"
        raise GenboundError(f"{str(file)!r} is no state dict (it holds {what}); save model.state_dict() alone")
    return _unwrap(content[found[0]], file)


def _read_config(file: Path) -> dict[str, Any] | None:
    """``config.json`` of a transformers model; other programs use the name too."""
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GenboundError(f"{str(file)!r} is no valid JSON ({error}); restore it from the original") from error
    return config if isinstance(config, dict) and ("model_type" in config or "architectures" in config) else None


def _digest(path: Path, files: Iterable[Path]) -> str:
    sha = hashlib.sha256()
    for file in sorted(files):
        if path.is_dir():
            sha.update(f"{file.name}|".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                sha.update(chunk)
    return sha.hexdigest()
