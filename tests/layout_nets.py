"""Networks whose output is a view: its entries lie in memory in another order than its axes say, or share a place."""

import torch
from small_nets import labels
from torch import nn


class Ending(nn.Module):
    """A network, and how its output is laid out."""

    def __init__(self, ending, *layers):
        super().__init__()
        self.net, self.ending = nn.Sequential(*layers), ending

    def forward(self, x):
        return self.ending(self.net(x))


def tagger():
    """One row of scores for each of four positions, as a transposed convolution's output."""
    net = Ending(lambda h: h.transpose(1, 2), nn.Conv1d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv1d(4, 3, 1))
    return net, torch.randn(7, 2, 4), torch.randint(0, 3, (7, 4))


def pixels():
    """One row of scores for each pixel, permuted."""
    net = Ending(
        lambda h: h.permute(0, 2, 3, 1).flatten(1, 2), nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 1)
    )
    return net, torch.randn(5, 2, 2, 3), torch.randint(0, 3, (5, 6))


def channels_last():
    net = Ending(
        lambda h: h.mean((2, 3), keepdim=True).squeeze(3).squeeze(2),
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1),
    )  # fmt: skip
    return net, torch.randn(7, 2, 3, 3).contiguous(memory_format=torch.channels_last), labels(7, 3)


def expanded():
    """The same scores for every position, without a copy."""
    net = Ending(lambda h: h.unsqueeze(1).expand(-1, 2, -1), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return net, torch.randn(7, 4), torch.randint(0, 3, (7, 2))


def sliced():
    """Every other score, the samples along the second axis until the end."""
    net = Ending(lambda h: h.t()[::2].t(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6))
    return net, torch.randn(7, 4), labels(7, 3)


def contiguous(build):
    """The same network with its output copied into the order of its axes."""

    def built():
        net, inputs, targets = build()
        before = net.ending
        net.ending = lambda h: before(h).clone(memory_format=torch.contiguous_format)
        return net, inputs.contiguous(), targets

    return built


LAYOUTS = {f.__name__: f for f in (tagger, pixels, channels_last, expanded, sliced)}
