"""Robust fine-tuning: losses that are unbiased under label noise, and layers kept near their pretrained weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Imported when first used: the callbacks need libraries that the rest does not.
_WHERE = {
    "ConsistentLoss": "genbound.finetune.label_noise.consistent_loss",
    "DistanceConstraint": "genbound.finetune.constraint.distance_constraint",
    "relative_radii": "genbound.finetune.constraint.radii",
    "stage_radii": "genbound.finetune.constraint.radii",
    "symmetric_noise": "genbound.finetune.label_noise.draw",
    "flip_labels": "genbound.finetune.label_noise.draw",
    "labels_from_predictions": "genbound.finetune.label_noise.draw",
    "anchor_points": "genbound.finetune.label_noise.confusion",
    "dual_t": "genbound.finetune.label_noise.confusion",
    "DistanceCallback": "genbound.finetune.trainer_callback",
    "LightningDistance": "genbound.finetune.lightning_callback",
    "finetune": "genbound.finetune.run",
    "Settings": "genbound.finetune.settings",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'genbound.finetune' has no attribute {name!r}")
