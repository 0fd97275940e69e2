"""ResNet-50 as transformers has it, for the study."""

from __future__ import annotations

import torch
from transformers import ResNetConfig, ResNetForImageClassification
from weights import FrozenStatistics, laid_out


class ResNet50(ResNetForImageClassification):
    """ResNet-50.

    Args:
        num_classes: of its head.
    """

    def __init__(self, num_classes: int):
        super().__init__(ResNetConfig(num_labels=num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores ``[N, K]`` of images ``[N, 3, H, W]``."""
        return super().forward(laid_out(self, x)).logits


class FineTunedResNet50(FrozenStatistics, ResNet50):
    """ResNet-50 as it is fine-tuned and measured."""
