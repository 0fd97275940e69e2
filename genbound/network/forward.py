"""Running a user's model: whatever its inputs and outputs look like, one tensor of scores comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from genbound.errors import GenboundError


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and put every module's own flag back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def call_arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """``(positional, keyword)`` arguments of a model for a batch's inputs: a dict gives keywords, a tuple positions."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple):
        return inputs, {}
    return (inputs,), {}


def scores(output: Any) -> Tensor:
    """The scores ``[N, ...]`` of whatever a model returns: a tensor, an object with ``logits``, a dict, or a tuple.

    Raises:
        GenboundError: there is no tensor of scores in it.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, list | tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise GenboundError(
        f"the model returns {type(output).__name__}: it must return a tensor, or something with `logits`; give a "
        "checkpoint with its head, or the class it was trained in with --model"
    )


def describe(inputs: Any) -> str:
    """Shapes and types of a batch's inputs in words, for messages."""
    if isinstance(inputs, Tensor):
        return f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{key} {describe(value)}" for key, value in inputs.items())
    if isinstance(inputs, tuple):
        return ", ".join(describe(value) for value in inputs)
    return type(inputs).__name__


class PlainWeightNorm(TorchFunctionMode):
    """Weight normalisation by its formula: torch's fused one holds the norm constant in its second derivative."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is torch._weight_norm:
            v, g, dim = (*args, 0)[:3]
            return v * (g / torch.norm_except_dim(v, 2, dim))
        return function(*args, **(kwargs or {}))


def has_weight_norm(model: nn.Module) -> bool:
    """Whether a weight of the model is normalised by torch's weight norm, as a parametrisation or by a hook."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return any(isinstance(module, _WeightNorm) for module in model.modules()) or any(
        isinstance(hook, WeightNorm) for hook in hooks
    )
