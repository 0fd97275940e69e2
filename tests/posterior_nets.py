"""Small fine-tuned networks of two and three classes, and what moved in them."""

import copy

import torch
from torch import nn

import genbound


def moved(net, by=0.3, only=None):
    """The network with all its parameters moved by random steps, and the state that it started from."""
    init = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for name, p in net.named_parameters():
            if only is None or name.startswith(only):
                p += by * torch.randn_like(p)
    return net, init


def mlp(classes=3, seed=0, num=40, only=None, **arguments):
    torch.manual_seed(seed)
    net, init = moved(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, classes)), only=only)
    data = (torch.randn(num, 4), torch.randint(classes, (num,)))
    arguments = {"dtype": torch.float64, **arguments}
    return genbound.Problem(net, init, data, **arguments)


def head(seed=0, num=60, **arguments):
    """Only the last layer of a network with two classes moved."""
    return mlp(2, seed, num, only="3.", **arguments)
