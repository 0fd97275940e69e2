"""The network of the demo: convolutions and a residual block, then an MLP on four tokens.

The layers behind the GELU see only piecewise linear operations on their way to the loss, so their Hessians
are provably positive semidefinite; those of the layers before it are not. Both kinds are here on purpose.
"""

import torch
from torch import nn


class ConvMLP(nn.Module):
    """1×8×8 images to ``num_classes`` logits."""

    def __init__(self, num_classes: int = 5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.residual = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.pool = nn.AvgPool2d(2)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(4 * 32, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.residual(x)
        x = self.pool(self.down(x))  # N×16×2×2
        tokens = x.flatten(2).transpose(1, 2)  # N×4×16: one token for each quarter of the image
        return self.head(self.mlp(tokens).flatten(1))


def build() -> ConvMLP:
    """The factory that ``--model examples/demo/model.py:build`` calls."""
    return ConvMLP()
