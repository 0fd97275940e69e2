"""The distance constraint as a callback of Lightning."""

from __future__ import annotations

from typing import Any

from genbound.errors import GenboundError
from genbound.finetune.constraint.distance_constraint import DistanceConstraint

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise GenboundError(f"this callback needs Lightning ({error}): pip install lightning") from error


class LightningDistance(Callback):
    """Projects after every optimizer step of a ``lightning.Trainer``, through the optimizers' own hook.

    Args:
        constraint: the balls; its names are those of ``network``.
        network: attribute of the LightningModule that holds the network, such as ``"model"``; empty where the
            module's own parameters are meant.
    """

    def __init__(self, constraint: DistanceConstraint, network: str = ""):
        self.constraint, self.network = constraint, network
        self._handles: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Project the weights, and from then on after every step of the optimizers."""
        model = pl_module.get_submodule(self.network)
        self.constraint.project(model)
        self._handles = [self.constraint.attach(optimizer, model) for optimizer in trainer.optimizers]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach the constraint from the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
