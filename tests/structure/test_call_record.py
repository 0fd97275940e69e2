"""What depends on the input beside autograd's record: followed, and refused where it would count as constant."""

import pytest
import torch
from cases import D
from small_nets import labels
from torch import nn
from torch.nn import functional as F

from genbound.network.problem import Problem
from genbound.structure.reader import read_structure
from genbound.structure.tree import lipschitz


@pytest.fixture(autouse=True)
def _readers_alone(monkeypatch):
    """Cut derivatives are refused before any reader sees them; here the readers are asked themselves."""
    monkeypatch.setattr("genbound.network.problem.check_derivatives", lambda network, names: ())


class Net(nn.Module):
    """A layer, a function of its result and of a second input, and a head."""

    def __init__(self, function):
        super().__init__()
        self.function, self.first, self.head = function, nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x, other=None):
        return self.head(self.function(self.first(x), other))


def structure_of(function, other=None):
    """Of one sample, so that nothing needs to hold sample by sample."""
    torch.manual_seed(0)
    net, x, y = Net(function).to(D), torch.randn(1, 4, dtype=D), labels(1, 3)
    init = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    data = (x, y) if other is None else [{"x": x, "other": other, "labels": y}]
    return read_structure(Problem(net, init, data, dtype=D))


def rounded_through(z, other):
    """The straight-through estimator: on autograd's graph it is the identity."""
    return z + (z.round() - z).detach()


def masked_by_a_number(z, other):
    return z * z.abs().max().item()


def written_over(z, other):
    mask = torch.ones_like(z)
    mask.copy_(z > 0)
    return z * mask


def through_a_buffer(z, other):
    buffer = torch.zeros(6, dtype=D)
    buffer += z.detach().sum(0)
    return z / (1 + buffer.abs())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda z, _: z * (z > 0), "off its graph"),
        (lambda z, _: z * z.detach().sigmoid(), "off its graph"),
        (lambda z, _: torch.maximum(z, z.detach().flip(1)), "off its graph"),
        (lambda z, _: torch.where(z.sum() > 0, z, -z), "off its graph"),
        (rounded_through, "off its graph"),
        (written_over, "off its graph"),
        (through_a_buffer, "off its graph"),
        (lambda z, _: torch.addmm(z.detach().abs(), z, torch.eye(6, dtype=D)), "not recognised"),
        (masked_by_a_number, "leaves torch"),
        (lambda z, _: z if bool(z.sum() > 0) else -z, "leaves torch"),
    ],
)
def test_what_is_made_from_the_input_is_no_constant(function, words):
    found = structure_of(function)
    assert found.tree is None and words in found.reason


@pytest.mark.parametrize(
    "function",
    [
        lambda z, _: z * torch.ones_like(z),  # the size of the input alone
        lambda z, _: z + z.new_full((6,), 0.5),
        lambda z, _: z.masked_fill(torch.arange(z.shape[1]) > 2, 0.0),
        lambda z, _: F.threshold(z.clone(), 0.0, 0.0, inplace=True),
    ],
)
def test_what_is_not_stays_one(function):
    assert lipschitz(structure_of(function).tree, {"first.weight": 1.0, "head.weight": 1.0}) == 1


def test_a_second_input_is_constant_but_not_its_numbers():
    """The tree is about the first input. A choice by the second has constant 1 whatever it is; a factor has not."""
    numbers = torch.rand(1, 6, dtype=D)
    chosen = structure_of(lambda z, other: z.masked_fill(other > 0.5, 0.0), numbers)
    assert lipschitz(chosen.tree, {"first.weight": 1.0, "head.weight": 1.0}) == 1
    assert (
        lipschitz(structure_of(lambda z, other: z + other, numbers).tree, {"first.weight": 1.0, "head.weight": 1.0})
        == 1
    )
    assert "for every sample" in structure_of(lambda z, other: z * other, numbers).reason
    places = numbers.argsort(1)
    assert "for every sample" in structure_of(lambda z, other: z.gather(1, other), places).reason
