"""Tiny networks with one weight in several or unusual uses, and a loss that is convex nowhere."""

from __future__ import annotations

import torch
from small_nets import Apply, labels, weight
from torch import nn
from torch.nn import functional as F


def siamese():
    """The same weight on both halves of the input, side by side."""
    run = lambda net, x: net.head(F.gelu(net.twin(x[:, :4])) * F.gelu(net.twin(x[:, 4:])))  # noqa: E731
    return Apply(run, twin=nn.Linear(4, 6), head=nn.Linear(6, 3)), torch.randn(5, 8), labels(5, 3)


def siamese_added():
    """Side by side and only added: still piecewise linear."""
    run = lambda net, x: net.head(net.twin(x[:, :4]).relu() - net.twin(x[:, 4:]).relu())  # noqa: E731
    return Apply(run, twin=nn.Linear(4, 6), head=nn.Linear(6, 3)), torch.randn(5, 8), labels(5, 3)


def twice():
    """The same weight after itself, through ReLU."""
    run = lambda net, x: net.head(net.same(net.same(x).relu()).relu())  # noqa: E731
    return Apply(run, same=nn.Linear(5, 5), head=nn.Linear(5, 3)), torch.randn(7, 5), labels(7, 3)


def einsum():
    run = lambda net, x: F.gelu(torch.einsum("ntd,hde->nhe", x, net.w)).flatten(1) @ net.out  # noqa: E731
    return Apply(run, w=weight(2, 3, 4), out=weight(8, 3)), torch.randn(5, 2, 3), labels(5, 3)


def standardised():
    """Weight standardisation, as in big-transfer networks."""

    def run(net, x):
        w = net.w
        mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
        h = F.conv2d(x, (w - mean) / (var + 1e-5).sqrt(), padding=1).relu()
        return net.head(h.mean((2, 3)))

    return Apply(run, w=weight(3, 2, 3, 3), head=nn.Linear(3, 3)), torch.randn(5, 2, 5, 5), labels(5, 3)


class WeightNormed(nn.Module):
    """Weight normalisation under the names of torch's parametrisation, for the dense twin.

    By its formula, because the second derivative of torch's fused operation is wrong (it keeps the norm constant).
    """

    def __init__(self, net):
        super().__init__()
        for name, p in net.named_parameters():
            *path, last = name.split(".")
            place = self
            for part in path:
                if not hasattr(place, part):
                    place.register_module(part, nn.Module())
                place = getattr(place, part)
            setattr(place, last, nn.Parameter(p.detach().clone()))

    def forward(self, x):
        first, last = self.get_submodule("0"), self.get_submodule("2")
        g, v = first.parametrizations.weight.original0, first.parametrizations.weight.original1
        h = x @ (g * v / v.square().sum(1, keepdim=True).sqrt()).mT + first.bias
        return h.tanh() @ last.weight.mT + last.bias


def weight_norm():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3))
    return net, torch.randn(5, 5), labels(5, 3)


def left_product():
    """The weight stands on the left of a product, and on the right of another with a transposition of its own."""
    run = lambda net, x: F.silu((net.w @ x.T).T + x @ net.w.mT) @ net.out.T  # noqa: E731
    return Apply(run, w=weight(4, 4), out=weight(3, 4)), torch.randn(5, 4), labels(5, 3)


def scaled_addmm():
    run = lambda net, x: torch.addmm(net.bias, x, net.w, alpha=2.5).tanh() @ net.out  # noqa: E731
    return Apply(run, w=weight(4, 5), bias=torch.randn(5), out=weight(5, 3)), torch.randn(5, 4), labels(5, 3)


def unused():
    run = lambda net, x: net.used(x)  # noqa: E731
    return Apply(run, used=nn.Linear(4, 3), spare=nn.Linear(4, 3)), torch.randn(5, 4), labels(5, 3)


def gate(function):
    """A gate on the first layer's output: piecewise-looking, and curved."""

    def build():
        run = lambda net, x: net.head(function(net.first(x)))  # noqa: E731
        return Apply(run, first=nn.Linear(4, 5), head=nn.Linear(5, 3)), torch.randn(9, 4), labels(9, 3)

    return build


def embedding_named():
    run = lambda net, x: net.head(torch.tanh(net.words(x)).flatten(1))  # noqa: E731
    return Apply(run, words=nn.Embedding(7, 3), head=nn.Linear(9, 3)), torch.randint(0, 7, (5, 3)), labels(5, 3)


def cosine_loss(outputs, targets):
    """A custom per-sample loss that is convex nowhere: bounded, with both signs of curvature."""
    return 1 - torch.cos(outputs - targets.to(outputs.dtype).unsqueeze(-1)).mean(-1)
