"""Files to tensors: read a checkpoint, whatever its container, without ever running its code."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genbound.checkpoints.containers import find_state
from genbound.checkpoints.torch_files import read_torch
from genbound.errors import GenboundError

HF_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar")  # no tar, whatever the name says
# What the Trainer and accelerate put beside the weights.
NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args", "init.", "custom_")
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
        tensors: the weights, by the names in the file.
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


def read_state(path: str | os.PathLike, entry: str | None = None, ignore: Iterable[str] = ()) -> StateFile:
    """Read a checkpoint; no code in it is ever executed.

    Args:
        path: a ``.safetensors`` file; a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file, with whatever a training script
            keeps beside the weights; or a directory of Hugging Face (one file of weights or several shards), of PEFT,
            or with a single file of weights.
        entry: which entry of the file holds the weights, where there are several (``model_ema``).
        ignore: patterns of names to leave out.

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
    tensors: dict[str, Tensor] = {}
    hyper_parameters: dict[str, Any] = {}
    notes: list[str] = []
    for file in files:
        if file.suffix == ".safetensors":
            tensors.update(_read_safetensors(file))
        else:
            found = find_state(_read_other(file), file, entry)
            tensors.update(found.tensors)
            hyper_parameters |= found.hyper_parameters
            notes += found.notes
    tensors, more = _measurable(_without(tensors, ignore), path)
    described = path.is_dir() or path.name in HF_WEIGHTS or path.name in ADAPTER_WEIGHTS
    folder = path if path.is_dir() else path.parent
    config, adapter = (_read_json(folder / name) if described else None for name in ("config.json", ADAPTER_CONFIG))
    if (
        adapter is None
        and any(".base_layer." in name for name in tensors)
        and any(".lora_" in name for name in tensors)
    ):
        raise GenboundError(
            f"checkpoint {str(path)!r} holds an adapter beside its base and not the adapter's scaling; "
            "save the PEFT model with save_pretrained(DIR), or merge it with merge_and_unload(), and give that"
        )
    if path.is_dir():
        files = [*files, *(folder / name for name in ("config.json", ADAPTER_CONFIG) if (folder / name).is_file())]
    return StateFile(
        path,
        _digest(path, files),
        tensors,
        config if config and {"model_type", "architectures", "architecture"} & set(config) else None,
        adapter,
        hyper_parameters,
        (*notes, *more),
    )


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a directory."""
    if (folder / ADAPTER_CONFIG).is_file():
        for name in ADAPTER_WEIGHTS:
            if (folder / name).is_file():
                return [folder / name]
        raise GenboundError(f"{str(folder)!r} has {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS[0]}; save the adapter again")
    for name in HF_WEIGHTS:
        if (folder / name).is_file():
            return [folder / name] if not name.endswith(".index.json") else _shards(folder, folder / name)
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    loose = [name for name in names if name.endswith(SUFFIXES) and not name.startswith(NOT_WEIGHTS)]
    if len(loose) == 1 and (folder / loose[0]).is_file():
        return [folder / loose[0]]
    inner = [name for name in names if (folder / name).is_dir()]
    runs = sorted((n for n in inner if n.startswith("checkpoint-")), key=lambda n: (len(n), n))
    if any(name.endswith(".distcp") for name in names):
        mend = (
            "it is sharded by torch.distributed: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE.pt"
        )
    elif "zero_to_fp32.py" in names or any(
        name.startswith(("global_step", "zero_pp_rank", "mp_rank")) for name in names
    ):
        mend = "it is sharded by DeepSpeed: consolidate it with python zero_to_fp32.py DIR OUT"
    elif any(name.endswith((".h5", ".msgpack", ".onnx", ".gguf")) for name in names):
        mend = "it holds weights of another framework: load it in PyTorch and save_pretrained() it"
    elif loose:
        mend = f"name the file itself, e.g. {loose[0]}"
    elif runs:
        mend = f"give one of its checkpoints, e.g. {runs[-1]}"
    else:
        mend = "give the checkpoint's file or directory"
    raise GenboundError(f"directory {str(folder)!r} has no weights (looked for {', '.join(HF_WEIGHTS)}); {mend}")


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(shard) for shard in named})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GenboundError(f"{str(index)!r} is no readable index of shards; download it again") from error
    # A name with a path in it could read files from anywhere.
    outside = [shard for shard in shards if Path(shard).name != shard or "\\" in shard]
    if outside:
        raise GenboundError(f"{str(index)!r} names a shard outside its directory ({outside[0]!r}); download it again")
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent or not shards:
        raise GenboundError(f"{str(folder)!r} lacks shard {(absent or ['(none named)'])[0]!r}; download it again")
    return [folder / shard for shard in shards]


def _read_other(file: Path) -> Any:
    _not_empty(file)
    if file.name.endswith(SUFFIXES):
        return read_torch(file)
    kind = OTHER_KINDS.get(file.suffix.lower())
    raise GenboundError(
        f"checkpoint {str(file)!r} "
        f"is {'of no known kind' if kind is None else kind + ', of no known kind here'}; give a .safetensors, .pt, "
        ".pth, .bin or .ckpt file, or a Hugging Face directory"
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
    from fnmatch import fnmatchcase

    patterns = tuple(ignore)
    return {name: t for name, t in tensors.items() if not any(fnmatchcase(name, pattern) for pattern in patterns)}


QUANTISED = {
    ".SCB": "bitsandbytes, 8 bit", ".quant_state.bitsandbytes__nf4": "bitsandbytes, 4 bit",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes, 4 bit", ".absmax": "bitsandbytes, 4 bit",
    ".qweight": "GPTQ or AWQ",
    "._packed_params": "torch.ao.quantization", "._packed_params._packed_params": "torch.ao.quantization",
    ".weight_scale_inv": "8-bit floats with scales", ".weight_packed": "compressed-tensors",
}  # fmt: skip
HALF = {torch.float16, torch.bfloat16}


def _measurable(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as finite floating-point weights, and what was done to them."""
    if not tensors:
        raise GenboundError(f"checkpoint {str(path)!r} holds no tensors; save a state dict")
    for name in tensors:
        kind = next((what for ending, what in QUANTISED.items() if name.endswith(ending)), None)
        if kind is None and name.endswith(".zero_point") and name.removesuffix("zero_point") + "scale" in tensors:
            kind = "torch.ao.quantization"
        if kind is None and name.endswith(".weight_scale") and name.removesuffix("_scale") in tensors:
            kind = "weights with scales" if tensors[name.removesuffix("_scale")].element_size() == 1 else None
        if kind is not None:
            raise GenboundError(
                f"checkpoint {str(path)!r} holds quantised weights ({kind}: {name!r}), "
                "whose distance from the start is mostly rounding; dequantise the model (model.dequantize() "
                "in transformers) and save it in full"
            )
    found, kinds = {}, {}
    for name, tensor in tensors.items():
        what = ""
        if tensor.is_quantized:
            tensor, what = tensor.dequantize(), "torch's quantised integers, dequantised to float32"
        elif tensor.layout != torch.strided:
            tensor, what = tensor.to_dense(), "sparse, made dense"
        elif tensor.is_floating_point() and tensor.element_size() == 1:
            tensor, what = tensor.float(), f"{_short(tensor)}, widened to float32 (exact)"
        elif tensor.dtype in HALF:
            what = (
                f"{_short(tensor)}, widened to float32 to be measured "
                "(exact; what training lost by rounding stays lost)"
            )
        if what:
            kinds[what] = kinds.get(what, 0) + 1
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() + 64:
            raise GenboundError(
                f"checkpoint {str(path)!r}: weight {name!r} claims more values than are stored; save it again"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise GenboundError(
                f"checkpoint {str(path)!r}: weight {name!r} has NaN or infinite entries; the training "
                "diverged or the file is damaged, use an earlier checkpoint"
            )
        found[name] = tensor
    return found, [f"{number} of {len(tensors)} tensors are {what}" for what, number in kinds.items()]


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise GenboundError(f"{str(file)!r} is no valid JSON ({error}); restore it from the original") from error
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
