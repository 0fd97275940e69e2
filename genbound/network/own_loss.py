"""A user's own loss, so that it can be differentiated twice and keeps its digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genbound.network.plain_functions import PlainFunctions
from genbound.network.plain_operations import plain_operations

if TYPE_CHECKING:
    from genbound.network.loss_functions import Loss


def twice_differentiable(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss with second derivatives wherever there are any, in double precision wherever it takes that.

    Functions of torch that have none are computed by their formulas, and nothing is compiled. What a formula subtracts,
    like a probability from 1, has digits left in double precision where the outputs' own has none. A loss that cannot
    have outputs in double precision, because it holds numbers in another, is computed in the outputs' own. Targets have
    the outputs' precision, because the derivative of a loss of torch takes one type.

    Args:
        function: ``(outputs, targets) -> [N]``.

    Returns:
        The same, its values in the outputs' precision.
    """

    def at(outputs: Tensor, targets: Tensor) -> Tensor:
        with PlainFunctions(), plain_operations():
            return function(outputs, targets.to(outputs.dtype) if targets.is_floating_point() else targets)

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.dtype == torch.float64:
            return at(outputs, targets)
        try:
            return at(outputs.double(), targets).to(outputs.dtype)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # of any kind: what is wrong with the loss itself is wrong in the outputs' own precision, too
            return at(outputs, targets)

    return per_sample


def in_double(loss: Loss, outputs: Tensor, targets: Tensor) -> Loss:
    """The loss for outputs in double precision that were, or are near to, such ``outputs [N, ...]``.

    One that holds numbers in another precision cannot have them. It is given the outputs in their own.
    """
    own = outputs.dtype
    if loss.factor is not None or own == torch.float64:
        return loss
    try:
        with torch.no_grad():
            loss.per_sample(outputs[:1].detach().double(), targets[:1])
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        return replace(loss, per_sample=lambda z, targets: loss.per_sample(z.to(own), targets).to(z.dtype))
    return loss
