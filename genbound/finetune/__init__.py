"""Robust fine-tuning: losses that are unbiased under label noise, and layers kept near their pretrained weights."""

from __future__ import annotations

from importlib import import_module

# Imported when first used: the callbacks need libraries that the rest does not.
_WHERE = {
    "ConsistentLoss": "genbound.finetune.consistent_loss",
    "DistanceConstraint": "genbound.finetune.distance_constraint",
    "relative_radii": "genbound.finetune.radii",
    "stage_radii": "genbound.finetune.radii",
    "symmetric_noise": "genbound.finetune.label_noise",
    "flip_labels": "genbound.finetune.label_noise",
    "labels_from_predictions": "genbound.finetune.label_noise",
    "anchor_points": "genbound.finetune.confusion",
    "dual_t": "genbound.finetune.confusion",
    "DistanceCallback": "genbound.finetune.trainer_callback",
    "LightningDistance": "genbound.finetune.lightning_callback",
    "finetune": "genbound.finetune.run",
    "Settings": "genbound.finetune.settings",
}
__all__ = [*_WHERE]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'genbound.finetune' has no attribute {name!r}")
