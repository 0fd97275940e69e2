"""Tiny feed-forward and convolutional networks, each with inputs and targets."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

D = torch.float64


def labels(n: int, k: int) -> torch.Tensor:
    return (torch.arange(n) * 5 + 1) % k


class Apply(nn.Module):
    """A function of a module's own parameters as a network."""

    def __init__(self, function, **parameters):
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, value if isinstance(value, nn.Module) else nn.Parameter(value))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def weight(*shape):
    return torch.randn(*shape) / math.sqrt(shape[-1])


def mlp(activation, widths=(5, 7, 6, 3), n=7, bias=True):
    def build():
        steps = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            steps += [nn.Linear(a, b, bias=bias), activation()]
        return nn.Sequential(*steps[:-1]), torch.randn(n, widths[0]), labels(n, widths[-1])

    return build


MLP_LAYERS = ("0.weight", "2.weight", "4.weight")


def with_targets(build, targets):
    def changed():
        model, inputs, old = build()
        return model, inputs, targets(len(old))

    return changed


def sharp(build):
    """Larger weights, and so larger scores."""

    def changed():
        model, inputs, targets = build()
        with torch.no_grad():
            for p in model.parameters():
                p *= 3
        return model, inputs, targets

    return changed


class Attending(nn.Module):
    """A transformer encoder's layers, on patches."""

    def __init__(self, width=48, depth=2, classes=10):
        super().__init__()
        self.depth = depth
        self.embed, self.head = nn.Linear(24, width), nn.Linear(width, classes)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(depth))

    def forward(self, x):
        x = self.embed(x)
        for i in range(self.depth):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).chunk(3, -1)
            x = x + torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
            x = x + self.down[i](nn.functional.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.head(x.mean(1))


class Residual(nn.Module):
    """Residual layers that curve."""

    def __init__(self, width: int, depth: int, classes: int = 3):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.fc(x)


class ConvNet(nn.Module):
    """Stride, groups, dilation, padding, a residual branch, BatchNorm with running statistics, pooling."""

    def __init__(self, activation=F.relu):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)
        self.activation = activation
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.3, 2.0)
            self.norm.weight.normal_(1, 0.3)
            self.norm.bias.normal_()

    def forward(self, x):
        h = self.activation(self.norm(self.stem(x)))
        h = F.max_pool2d(self.activation(self.branch(h) + self.shortcut(h)), 2)
        return self.head(h.mean((2, 3)))


def conv_net(activation=F.relu):
    return lambda: (ConvNet(activation), torch.randn(5, 2, 8, 8), labels(5, 3))


CONV_LAYERS = ("stem.weight", "branch.weight", "shortcut.weight", "head.weight")


def conv_1d():
    net = nn.Sequential(
        nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.ConvTranspose1d(3, 2, 3, stride=2, output_padding=1),
        nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    return net, torch.randn(5, 2, 8), labels(5, 3)


def conv_transposed():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 2, stride=2), nn.Softplus(), nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, groups=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return net, torch.randn(5, 2, 6, 6), labels(5, 3)


def conv_3d():
    net = nn.Sequential(nn.Conv3d(1, 2, 2), nn.SiLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(2, 2))
    return net, torch.randn(5, 1, 3, 3, 3), labels(5, 2)
