"""Which files of a checkpoint's directory hold its weights."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

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


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a directory: of an adapter, of Hugging Face with its shards, or the only one there is.

    Raises:
        GenboundError: there are none, or several and nothing says which; with what the directory seems to be.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return [_adapter_file(folder)]
    for name in HF_WEIGHTS:
        if (folder / name).is_file():
            return _shards(folder, folder / name) if name.endswith(".index.json") else [folder / name]
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    loose = [name for name in names if name.endswith(SUFFIXES) and not name.startswith(NOT_WEIGHTS)]
    if len(loose) == 1 and (folder / loose[0]).is_file():
        return [folder / loose[0]]
    raise GenboundError(
        f"directory {str(folder)!r} has no weights (looked for {', '.join(HF_WEIGHTS)}); {_mend(folder, names, loose)}"
    )


def _adapter_file(folder: Path) -> Path:
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise GenboundError(f"{str(folder)!r} has {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS[0]}; save the adapter again")


def _mend(folder: Path, names: list[str], loose: list[str]) -> str:
    """What to do about a directory without weights, by the names in it."""
    if any(name.endswith(".distcp") for name in names):
        return (
            "it is sharded by torch.distributed: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE.pt"
        )
    if "zero_to_fp32.py" in names or any(n.startswith(("global_step", "zero_pp_rank", "mp_rank")) for n in names):
        return "it is sharded by DeepSpeed: consolidate it with python zero_to_fp32.py DIR OUT"
    if any(name.endswith((".h5", ".msgpack", ".onnx", ".gguf")) for name in names):
        return "it holds weights of another framework: load it in PyTorch and save_pretrained() it"
    if loose:
        return f"name the file itself, e.g. {loose[0]}"
    runs = [name for name in names if name.startswith("checkpoint-") and (folder / name).is_dir()]
    if runs:
        return f"give one of its checkpoints, e.g. {max(runs, key=lambda name: (len(name), name))}"
    return "give the checkpoint's file or directory"


def _shards(folder: Path, index: Path) -> list[Path]:
    named = weight_map(index).values()
    shards = sorted(set(named))
    # A name with a path in it could read files from anywhere.
    outside = [shard for shard in shards if Path(shard).name != shard or "\\" in shard]
    if outside:
        raise GenboundError(f"{str(index)!r} names a shard outside its directory ({outside[0]!r}); download it again")
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent or not shards:
        raise GenboundError(f"{str(folder)!r} lacks shard {(absent or ['(none named)'])[0]!r}; download it again")
    return [folder / shard for shard in shards]


def weight_map(index: Path) -> dict[str, str]:
    """Name of each weight -> the shard that has it, of an index.

    Raises:
        GenboundError: it is none.
    """
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GenboundError(f"{str(index)!r} is no readable index of shards; download it again") from error


def of_index(shard: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a shard without those that the index beside it has in another one.

    Raises:
        GenboundError: the shard lacks one that the index has in it, as where another checkpoint was saved over it.
    """
    for index in (shard.parent / name for name in HF_WEIGHTS if name.endswith(".index.json")):
        named = weight_map(index) if index.is_file() else {}
        if shard.name not in named.values():
            continue
        lost = next((name for name, file in named.items() if file == shard.name and name not in tensors), None)
        if lost is not None:
            raise GenboundError(
                f"{str(shard)!r} lacks {lost}, which {index.name} has in it: they are of two checkpoints; download it "
                "again, into an empty directory"
            )
        return {name: tensor for name, tensor in tensors.items() if named.get(name, shard.name) == shard.name}
    return tensors
