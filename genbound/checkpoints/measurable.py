"""Tensors as they can be measured: finite, dense, not quantised, in a precision that loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from genbound.errors import GenboundError, first_line
from genbound.estimators.all_finite import all_finite

QUANTISED = {
    ".SCB": "bitsandbytes, 8 bit", ".quant_state.bitsandbytes__nf4": "bitsandbytes, 4 bit",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes, 4 bit", ".absmax": "bitsandbytes, 4 bit",
    ".qweight": "GPTQ or AWQ",
    "._packed_params": "torch.ao.quantization", "._packed_params._packed_params": "torch.ao.quantization",
    ".weight_scale_inv": "8-bit floats with scales", ".weight_packed": "compressed-tensors",
}  # fmt: skip
LAYOUTS = (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
MOST_DENSE = 1 << 24  # numbers that the sparse weights of a small file may become
MOST_TIMES = 64  # and those of a large one: how many times what it stores
HALF = {torch.float16, torch.bfloat16}


def measurable(tensors: Mapping[str, Tensor], path: Path, look: bool = True) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as finite floating-point weights, and sentences that say what was done to them.

    Args:
        tensors: by name, of any shape.
        path: of the checkpoint, for the messages.
        look: whether their numbers are looked at.

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
    _refuse_expanding(tensors, path)
    for name, tensor in tensors.items():
        try:
            found[name], what = _widened(tensor)
            if look:
                _refuse_damaged(name, found[name], path)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise GenboundError(
                f"checkpoint {str(path)!r}: weight {name!r} is a {_kind(tensor)}, which cannot be measured "
                f"({first_line(error)[:100]}); save it as float32"
            ) from error
        done.update([what] if what else [])
    return found, [f"{number} of {len(tensors)} tensors are {what}" for what, number in done.items()]


def _refuse_expanding(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors without numbers of their own, and a file whose tensors become much more than it holds.

    A weight that the file holds under several names is made dense under each.
    """
    expanded = stored = 0
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.is_nested or tensor.layout not in LAYOUTS:
            raise GenboundError(
                f"checkpoint {str(path)!r}: weight {name!r} is a {_kind(tensor)} tensor, which holds no weights that "
                "can be measured; save it as a dense one (tensor.to_dense())"
            )
        if tensor.layout == torch.strided:
            _refuse_unstored(name, tensor, path)
            stored += tensor.numel()
        else:
            expanded += tensor.numel()
            stored += (tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()).numel()
    if expanded > max(MOST_DENSE, MOST_TIMES * stored):
        raise GenboundError(
            f"checkpoint {str(path)!r} holds {stored:,} numbers and its sparse weights would become {expanded:,}; "
            "save them dense, if that is what they are"
        )


def _kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "meta"
    if tensor.is_nested:
        return "nested"
    return " ".join(str(part).removeprefix("torch.") for part in (tensor.layout, tensor.dtype))


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
        unless = "unless --dtype is as narrow (exact; what training lost by rounding stays lost)"
        return tensor, f"{kind}, widened to float32 or more {unless}"
    return tensor, ""


def _refuse_unstored(name: str, tensor: Tensor, path: Path) -> None:
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() + 64:
        raise GenboundError(
            f"checkpoint {str(path)!r}: weight {name!r} claims more values than are stored; save it again"
        )


def _refuse_damaged(name: str, tensor: Tensor, path: Path) -> None:
    _refuse_unstored(name, tensor, path)
    if tensor.is_floating_point() and not all_finite(tensor):
        raise GenboundError(
            f"checkpoint {str(path)!r}: weight {name!r} has NaN or infinite entries; the training "
            "diverged or the file is damaged, use an earlier checkpoint"
        )
