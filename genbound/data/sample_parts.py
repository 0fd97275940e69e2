"""One sample, or one batch of them, taken apart into inputs and labels, checked, and put together again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.errors import GenboundError

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
LABEL_NAMES = ("labels", "label", "y")
IGNORED = -100  # the label of a token that does not count, as in torch and transformers


def to_tensor(value: Any, where: str) -> Tensor:
    """A detached CPU tensor of a number, an array or nested lists, in their shape; a tensor stays as it is."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        if isinstance(value, np.ndarray):  # torch takes no negative strides, and no bytes in another order
            value = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        first = value[0] if isinstance(value, list | tuple) and value else value
        kind = first.dtype if isinstance(first, np.ndarray) else type(first).__name__
        raise GenboundError(f"{where} holds {kind}, not numbers; convert it to a tensor first") from error


def inputs_and_labels(item: Any, where: str) -> tuple[Any, Any]:
    """Take a sample or a batch apart, whatever its container."""
    if isinstance(item, Mapping):
        label = next((name for name in LABEL_NAMES if name in item and item[name] is not None), None)
        if label is None:
            raise GenboundError(f"{where} has no labels (keys: {', '.join(map(str, item))}); call them 'labels'")
        inputs = {name: value for name, value in item.items() if name not in LABEL_NAMES and value is not None}
        if not inputs:
            raise GenboundError(f"{where} has labels but no inputs")
        return inputs, item[label]
    if isinstance(item, tuple | list) and len(item) >= 2 and item[-1] is not None:
        return (item[0] if len(item) == 2 else tuple(item[:-1])), item[-1]
    raise GenboundError(f"{where} is a {type(item).__name__} without labels; give (inputs, labels) or a dict")


def split_pair(item: Any, where: str) -> tuple[Inputs, Tensor]:
    """Inputs and labels of a sample or a batch, as tensors in the shapes that it has them in; classes become int64."""
    inputs, labels = inputs_and_labels(item, where)
    if isinstance(inputs, Mapping):
        inputs = {name: to_tensor(value, f"{where}: input {name!r}") for name, value in inputs.items()}
    elif isinstance(inputs, tuple) or (
        isinstance(inputs, list) and any(isinstance(part, Tensor | np.ndarray) for part in inputs)
    ):
        inputs = tuple(to_tensor(value, f"{where}: inputs") for value in inputs)
    else:
        inputs = to_tensor(inputs, f"{where}: inputs")
    targets = to_tensor(labels, f"{where}: labels")
    # Class indices come as uint8, int32 or bool as well; the losses want one type.
    return inputs, (targets if targets.is_floating_point() else targets.long())


def checked(inputs: Inputs, targets: Tensor, where: str, stacked: bool) -> tuple[Inputs, Tensor]:
    """Refuse what would poison every number that is computed from it.

    Args:
        inputs: of a batch, tensors ``[N, ...]``, or of one sample, without the first axis.
        targets: the labels, likewise.
        where: for the messages.
        stacked: it is a batch.

    Returns:
        Inputs and labels as they are.

    Raises:
        GenboundError: lengths that differ, numbers that are not finite, or a negative class.
    """
    tensors = (*leaves(inputs), ("labels", targets))
    if stacked:
        sizes = {name: len(tensor) if tensor.ndim else None for name, tensor in tensors}
        if None in sizes.values() or len(set(sizes.values())) > 1:
            counts = ", ".join(
                f"{name or 'inputs'} {'a single number' if size is None else size}" for name, size in sizes.items()
            )
            raise GenboundError(
                f"{where}: inputs and labels have different lengths ({counts}); give one label a sample"
            )
    for name, tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            raise GenboundError(f"{where}: {name or 'inputs'} have a NaN or infinite entry at {bad}; clean the data")
    # One class a sample; in a sequence of labels -100 marks the tokens that do not count.
    if not targets.is_floating_point() and targets.ndim == int(stacked) and bool((targets < 0).any()):
        raise GenboundError(
            f"{where}: label {int(targets.min())} is negative; classes count from 0, drop unlabelled samples"
        )
    return inputs, targets


def check_labelled(targets: Tensor) -> None:
    """Refuse samples none of whose positions has a label ``[N, ...]``: their loss would be 0, with no error."""
    without = int((targets == IGNORED).flatten(1).all(1).sum()) if targets.dim() > 1 else 0
    if without:
        raise GenboundError(
            f"{without} of {len(targets)} samples looked at together have no label ({IGNORED} in every place): "
            "drop unlabelled samples"
        )


def leaves(inputs: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor of the inputs, of any shape, with its dotted name, in the order of the names."""
    if isinstance(inputs, Tensor):
        return [(name, inputs)]
    parts = sorted(inputs.items()) if isinstance(inputs, dict) else enumerate(inputs)
    return [leaf for key, part in parts for leaf in leaves(part, f"{name}.{key}".lstrip("."))]


def stored_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that one of any layout and shape is stored as; itself where it is dense."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)


def raw_bytes(tensor: Tensor) -> bytes:
    """What a tensor of any layout and shape holds, for a digest: equal ones have equal bytes."""
    tensor = tensor.detach().cpu()
    tensor = tensor.coalesce() if tensor.layout == torch.sparse_coo else tensor
    # Viewed as bytes, because NumPy has no bfloat16.
    return b"".join(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for part in stored_parts(tensor))


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with ``function`` applied to each of their tensors, of any shape."""
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(map(function, inputs)) if isinstance(inputs, tuple) else function(inputs)


def stack(inputs: Sequence[Any]) -> Inputs:
    """The inputs of several samples as those of a batch: each tensor gets a first axis ``[N, ...]``."""
    first = inputs[0]
    if isinstance(first, dict):
        return {name: torch.stack([sample[name] for sample in inputs]) for name in first}
    if isinstance(first, tuple):
        return tuple(torch.stack(parts) for parts in zip(*inputs, strict=True))
    return torch.stack(list(inputs))


def counted(output: Tensor, targets: Tensor) -> Tensor:
    """One sample's scores where they count.

    Args:
        output: scores of one sample, ``[K]``, or ``[T, K]`` for T positions.
        targets: its label: a class, numbers, or ``[T]`` classes with :data:`IGNORED` where none counts.

    Returns:
        The scores at the labelled positions; all of them where the label is no sequence.
    """
    if targets.is_floating_point() or targets.dim() == 0 or output.shape[: targets.dim()] != targets.shape:
        return output
    return output[targets != IGNORED]
