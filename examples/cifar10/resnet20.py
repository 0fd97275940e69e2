"""ResNet-20 for 32×32 images (He et al., CVPR 2016, section 4.2), with projection shortcuts.

Three stages of three residual blocks, 16, 32 and 64 channels wide; the first block of stages 2 and 3 halves the
resolution. There the shortcut is a 1×1 convolution of stride 2 with BatchNorm (their option B). 22 weights in all.
"""

import torch
from torch import nn
from torch.nn.functional import relu


def convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """relu(shortcut(x) + branch(x)) with two 3×3 convolutions on the branch."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = convolution(channels_in, channels_out, 3, stride), nn.BatchNorm2d(channels_out)
        self.conv2, self.bn2 = convolution(channels_out, channels_out, 3), nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = convolution(channels_in, channels_out, 1, stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = relu(self.bn1(self.conv1(x)))
        return relu(self.shortcut(x) + self.bn2(self.conv2(branch)))


class ResNet20(nn.Module):
    """N×3×32×32 to N×``num_classes`` logits."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv, self.bn = convolution(3, 16, 3), nn.BatchNorm2d(16)
        blocks = []
        for channels_in, channels_out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
            blocks += [Block(channels_in, channels_out, stride)]
            blocks += [Block(channels_out, channels_out, 1) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(relu(self.bn(self.conv(x))))
        return self.head(x.mean((2, 3)))


def build(num_classes: int = 5) -> ResNet20:
    """The factory that ``--model examples/cifar10/resnet20.py:build`` calls."""
    return ResNet20(num_classes)
