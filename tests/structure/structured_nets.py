"""Small networks of many structures, with the shape of their input."""

import torch
from torch import nn
from torch.nn import functional as F

from genbound import Problem

D = torch.float64


class Apply(nn.Module):
    """A function of modules."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            if isinstance(module, torch.Tensor):
                self.register_parameter(name, nn.Parameter(module))
            else:
                self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def settled(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """In float64, with running statistics and affine parameters away from their defaults."""
    model = model.to(D)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.5)
                nn.init.normal_(module.bias)
    return model.eval()


def make(build, shape, **arguments) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        inputs = torch.randn(4, *shape, dtype=D)
        model = settled(build(), inputs)
        init = {n: p.detach() + 0.2 * torch.randn_like(p) for n, p in model.named_parameters()}
        buffers = {n: b + 0.3 * torch.rand_like(b) if b.is_floating_point() else b for n, b in model.named_buffers()}
    return Problem(model, init, (inputs, torch.arange(4) % 2), init_buffers=buffers, **arguments)


def basic_block(i: int, o: int, stride: int) -> nn.Module:
    """A ResNet basic block with a projection shortcut."""

    def run(m, x):
        y = m.bn2(m.conv2(F.relu(m.bn1(m.conv1(x)), inplace=True)))
        return F.relu(y + m.shortcut(x))

    return Apply(
        run, conv1=nn.Conv2d(i, o, 3, stride, 1, bias=False), bn1=nn.BatchNorm2d(o),
        conv2=nn.Conv2d(o, o, 3, 1, 1, bias=False), bn2=nn.BatchNorm2d(o),
        shortcut=nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)),
    )  # fmt: skip


def head(features: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 2)]


NETS = {
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 2)), (5,),
    ),
    "smooth activations": (
        lambda: nn.Sequential(
            nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6), nn.Mish(), nn.Linear(6, 6),
            nn.SELU(),
            nn.Linear(6, 6), nn.CELU(0.5), nn.Linear(6, 6), nn.Hardswish(), nn.Linear(6, 6), nn.LeakyReLU(1.7),
            nn.Linear(6, 6), nn.PReLU(init=1.3), nn.Linear(6, 6), nn.GELU("tanh"), nn.Linear(6, 2), nn.Sigmoid(),
        ), (5,),
    ),
    "pools": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2),
        ), (2, 8, 8),
    ),
    "dilated max-pool": (
        lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1, dilation=2), nn.Flatten(), nn.Linear(18, 2)), (2, 8, 8),
    ),
    "adaptive pools that repeat": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(5), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(18, 2),
        ),
        (2, 4, 4),
    ),
    "residual": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), basic_block(3, 4, 2), *head(4)),
        (2, 7, 7),
    ),
    "pre-activation": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, bias=False),
            Apply(lambda m, x: x + m.conv(F.relu(m.bn(x))), bn=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 3, 3, 1, 1)),
            *head(3),
        ), (2, 6, 6),
    ),
    "concatenation": (
        lambda: nn.Sequential(
            Apply(
                lambda m, x: torch.cat([x, F.relu(m.a(x)), m.b(x)], 1), a=nn.Conv2d(2, 2, 1),
                b=nn.Conv2d(2, 3, 3, 1, 1),
            ),
            *head(7),
        ), (2, 5, 5),
    ),
    "nested sums": (
        lambda: Apply(
            lambda m, x: torch.add(x, m.a(F.relu(torch.sub(m.b(x), m.c(x).abs(), alpha=0.5)) - m.d(x)), alpha=3)[:, :2],
            a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4), d=nn.Linear(4, 4),
        ), (4,),
    ),
    "factors": (
        lambda: Apply(lambda m, x: m.b(x / torch.tensor([0.5, 2.0, 4.0], dtype=D) * 1.5 + m.s * m.a(x) * 2.0),
                      a=nn.Linear(3, 3), b=nn.Linear(3, 2), s=torch.tensor([0.2, -3.0, 1.0])), (3,),
    ),
    "separable": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, groups=3, stride=2), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 4, 1),
            nn.BatchNorm2d(4),
            nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 4, 3, 2, groups=2), nn.BatchNorm2d(4, affine=False),
            *head(4),
        ), (3, 7, 7),
    ),
    "sequence": (
        lambda: Apply(lambda m, x: m.b(F.relu(m.c(m.a(x).transpose(1, 2)))).sum(2)[:, :2],
                      a=nn.Linear(3, 4), c=nn.Conv1d(4, 4, 3, 2), b=nn.Conv1d(4, 2, 1)), (6, 3),
    ),
    "tokens": (
        lambda: Apply(lambda m, x: m.b(torch.relu(m.a(x)).mean(1)), a=nn.Linear(3, 5, bias=False), b=nn.Linear(5, 2)),
        (4, 3),
    ),
    "batch norm behind a linear map": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), (3,),
    ),
    "a maximum of branches": (
        lambda: Apply(lambda m, x: torch.maximum(m.a(x), m.b(x)), a=nn.Linear(4, 2), b=nn.Linear(4, 2)), (4,),
    ),
}  # fmt: skip
