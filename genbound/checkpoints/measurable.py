"""Tensors as they can be measured: finite, dense, not quantised, in a precision that loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from genbound.errors import GenboundError

QUANTISED = {
    ".SCB": "bitsandbytes, 8 bit", ".quant_state.bitsandbytes__nf4": "bitsandbytes, 4 bit",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes, 4 bit", ".absmax": "bitsandbytes, 4 bit",
    ".qweight": "GPTQ or AWQ",
    "._packed_params": "torch.ao.quantization", "._packed_params._packed_params": "torch.ao.quantization",
    ".weight_scale_inv": "8-bit floats with scales", ".weight_packed": "compressed-tensors",
}  # fmt: skip
HALF = {torch.float16, torch.bfloat16}


def measurable(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as finite floating-point weights, and sentences that say what was done to them.

    Args:
        tensors: by name, of any shape.
        path: of the checkpoint, for the messages.

    Raises:
        GenboundError: no tensors, quantised ones, or one that is damaged.
    """
    if not tensors:
        raise GenboundError(f"checkpoint {str(path)!r} holds no tensors; save a state dict")
    for name in tensors:
        if kind := _quantised(name, tensors):
            raise GenboundError(
                f"checkpoint {str(path)!r} holds quantised weights ({kind}: {name!r}), whose distance from the start "
                "is mostly rounding; dequantise the model (model.dequantize() in transformers) and save it in full"
            )
    found: dict[str, Tensor] = {}
    done: Counter[str] = Counter()
    for name, tensor in tensors.items():
        found[name], what = _widened(tensor)
        _refuse_damaged(name, found[name], path)
        done.update([what] if what else [])
    return found, [f"{number} of {len(tensors)} tensors are {what}" for what, number in done.items()]


def _quantised(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Which library's quantised weights a tensor of this name is a part of; empty for one that is none."""
    for ending, kind in QUANTISED.items():
        if name.endswith(ending):
            return kind
    if name.endswith(".zero_point") and name.removesuffix("zero_point") + "scale" in tensors:
        return "torch.ao.quantization"
    weight = tensors.get(name.removesuffix("_scale")) if name.endswith(".weight_scale") else None
    return "weights with scales" if weight is not None and weight.element_size() == 1 else ""


def _widened(tensor: Tensor) -> tuple[Tensor, str]:
    """The tensor, dense and not in a format of one byte, and what it was.

    Half precision is widened when it is measured.
    """
    if tensor.is_quantized:
        return tensor.dequantize(), "torch's quantised integers, dequantised to float32"
    if tensor.layout != torch.strided:
        return tensor.to_dense(), "sparse, made dense"
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return tensor.float(), f"{kind}, widened to float32 (exact)"
    if tensor.dtype in HALF:
        return tensor, f"{kind}, widened to float32 to be measured (exact; what training lost by rounding stays lost)"
    return tensor, ""


def _refuse_damaged(name: str, tensor: Tensor, path: Path) -> None:
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() + 64:
        raise GenboundError(
            f"checkpoint {str(path)!r}: weight {name!r} claims more values than are stored; save it again"
        )
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise GenboundError(
            f"checkpoint {str(path)!r}: weight {name!r} has NaN or infinite entries; the training "
            "diverged or the file is damaged, use an earlier checkpoint"
        )
