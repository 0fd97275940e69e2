"""Running a user's model: whatever its inputs and outputs look like, one tensor of scores comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from genbound.errors import GenboundError
from genbound.network.kept_values import as_they_were


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode, and put back every module's own flag and whatever passes change in it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with as_they_were(model):
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


def scores(output: Any, which: str | int | None = None) -> Tensor:
    """The scores ``[N, ...]`` of whatever a model returns: a tensor, an object with ``logits``, a dict, or a tuple.

    Args:
        output: what the model returned.
        which: name or place of the scores among several outputs; ``None`` where there is no choice.

    Raises:
        GenboundError: there is no tensor of scores in it, or it is not clear which one is meant.
    """
    if isinstance(output, Tensor):
        if which not in (None, 0, "0"):
            raise GenboundError(f"--output {which}: the model returns one tensor, there is nothing to choose")
        return output
    found = _tensors(output)
    if which is not None:
        if str(which) not in found:
            raise GenboundError(f"the model returns no output {which!r}: there {_choice(found)}")
        return found[str(which)]
    if "logits" in found:
        return found["logits"]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise GenboundError(
            f"the model returns several tensors, and it is not clear which are the scores: there {_choice(found)}; "
            "choose with --output NAME (in Python: output=NAME), or a --model that returns the scores alone"
        )
    raise GenboundError(
        f"the model returns {type(output).__name__}: it must return a tensor, or something with `logits`; give a "
        "checkpoint with its head, or the class it was trained in with --model"
    )


def _tensors(output: Any) -> dict[str, Tensor]:
    """The floating-point tensors among a model's outputs, by name or place."""
    if not isinstance(output, Mapping) and hasattr(output, "logits"):
        return {"logits": output.logits}
    if isinstance(output, Mapping):
        entries = list(output.items())
    elif isinstance(output, list | tuple):
        entries = list(enumerate(output))
    else:
        entries = list(vars(output).items()) if hasattr(output, "__dict__") else []
    return {str(name): x for name, x in entries if isinstance(x, Tensor) and x.is_floating_point()}


def _choice(found: Mapping[str, Tensor]) -> str:
    shown = ", ".join(f"{name} {tuple(x.shape)}" for name, x in list(found.items())[:6])
    return f"are {shown}" if found else "is none of floating-point numbers"


def describe(inputs: Any) -> str:
    """Shapes and types of a batch's inputs in words, for messages."""
    if isinstance(inputs, Tensor):
        return f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{key} {describe(value)}" for key, value in inputs.items())
    if isinstance(inputs, tuple):
        return ", ".join(describe(value) for value in inputs)
    return type(inputs).__name__
