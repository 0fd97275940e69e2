"""The distance constraint as a callback of ``transformers.Trainer``."""

from __future__ import annotations

from typing import Any

from genbound.errors import GenboundError
from genbound.finetune.constraint.distance_constraint import DistanceConstraint

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise GenboundError(f"this callback needs transformers ({error}): pip install 'genbound[finetune]'") from error


class DistanceCallback(TrainerCallback):
    """Projects after every optimizer step, and before the first one.

    Mixed precision, gradient accumulation and distributed data parallel need nothing more: the step is the optimizer's,
    its weights are the float32 ones, and every process projects the same weights in the same way.

    Args:
        constraint: the balls.

    Example:
        Trainer(model, args, ..., compute_loss_func=loss.compute_loss_func, callbacks=[DistanceCallback(constraint)])
    """

    def __init__(self, constraint: DistanceConstraint):
        self.constraint = constraint

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Project the weights before the first step."""
        self.constraint.project(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Project the weights after the optimizer's step."""
        self.constraint.project(model)
