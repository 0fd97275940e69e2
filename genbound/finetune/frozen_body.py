"""Train the head alone: nothing below it moves, running statistics included."""

from __future__ import annotations

from typing import Any

from torch import nn

from genbound.errors import GenboundError


def freeze_body(model: nn.Module, head: tuple[str, ...]) -> None:
    """Leave every parameter and buffer outside the head as it is.

    Args:
        model: the network.
        head: parameters of its head.

    Raises:
        GenboundError: the network has no head that is told apart.
    """
    if not head:
        raise GenboundError("--trained head: the model has no head that can be told from its body")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.register_forward_pre_hook(_as_in_evaluation)


def _as_in_evaluation(module: nn.Module, _: Any) -> None:
    module.eval()  # before every pass: the loop sets the mode of the whole network anew
