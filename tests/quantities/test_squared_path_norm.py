"""The squared path norm against paths summed by hand and by folded modules."""

import copy
import math

import pytest
import torch
from torch import nn

from genbound.evaluation.loop import evaluate, measure
from genbound.network.problem import Problem

D = torch.float64


def problem(net, x):
    net = net.to(D).eval()
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    with torch.no_grad():
        classes = net(x).shape[-1]
    return Problem(net, init, (x, torch.arange(len(x)) % classes))


def net_f():
    """The two-layer network of the pencil value 41 + 26 = 67."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, 1], [0, 1], [-2, 1]]))
        net[2].weight.copy_(torch.tensor([[2.0, 1, 2], [1, -4, 1]]))
    return net


def test_pencil_value():
    found = measure(problem(net_f(), torch.eye(2, dtype=D)), "squared_path_norm")
    assert found["value"] == pytest.approx(67, rel=1e-14)
    assert found["log10_squared"] == pytest.approx(math.log10(67), rel=1e-14)


def test_biases_are_edges_from_a_unit():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        for layer, weight, bias in ((net[0], [[1.0, -2], [3, 0]], [-1.0, 2]), (net[2], [[2.0, -1]], [3.0])):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    # Hidden: 1 + 4 + 1 = 6 and 9 + 0 + 4 = 13; output: 4 * 6 + 1 * 13 + 9 = 46.
    found = measure(problem(net, torch.ones(3, 2, dtype=D)), "squared_path_norm")
    assert found["value"] == pytest.approx(46, rel=1e-14)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.block, self.block_norm = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.pool, self.early = nn.MaxPool2d(2), nn.BatchNorm2d(4)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        a = self.act(self.norm(self.stem(x)))
        a = self.early(self.act(self.block_norm(self.block(a)) + a))
        b = nn.functional.adaptive_avg_pool2d(a, 1).flatten(1)
        return self.head(torch.cat([self.pool(a).mean((2, 3)), b], 1))


def randomised(net):
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        with torch.no_grad():
            norm.weight.uniform_(-2, 2)
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return net.to(D).eval()


def fold(conv, norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = (0 if conv.bias is None else conv.bias) - norm.running_mean
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
    folded.bias = nn.Parameter(bias * scale + norm.bias)
    return folded


@torch.no_grad()
def test_folded_residual_network():
    """An independent way: fold by hand, square the parameters of the modules, run the modules."""
    torch.manual_seed(0)
    net = randomised(Residual())
    x = torch.randn(4, 2, 6, 6, dtype=D)
    found = measure(problem(net, x), "squared_path_norm")
    twin = copy.deepcopy(net)
    twin.stem, twin.block = fold(net.stem, net.norm), fold(net.block, net.block_norm)
    twin.norm = twin.block_norm = nn.Identity()
    scale = net.early.weight / (net.early.running_var + net.early.eps).sqrt()
    early = nn.Conv2d(4, 4, 1, groups=4).to(D)
    early.weight.copy_(scale.view(4, 1, 1, 1))
    early.bias.copy_(net.early.bias - scale * net.early.running_mean)
    twin.early = early
    for p in twin.parameters():
        p.square_()
    assert found["value"] == pytest.approx(float(twin(torch.ones(1, 2, 6, 6, dtype=D)).sum()), rel=1e-12)


@pytest.mark.parametrize(("scale", "sign"), [(100.0, 1), (0.01, -1)])
def test_deep_networks_neither_overflow_nor_vanish(scale, sign):
    net = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(150)), nn.Linear(1, 2, bias=False)).to(D)
    with torch.no_grad():
        for layer in net[:-1]:
            layer.weight.fill_(scale)
        net[-1].weight.fill_(1.0)
    x = torch.full((2, 1), 1e-300 if sign > 0 else 1.0, dtype=D)
    found = measure(problem(net, x), "squared_path_norm")
    assert found["log10_squared"] == pytest.approx(sign * 600 + math.log10(2), rel=1e-12)
    assert found["value"] is None if sign > 0 else found["value"] == 0


def test_rescaling_neighbouring_layers_changes_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(3, 3, dtype=D)
    before = measure(problem(net, x), "squared_path_norm")["value"]
    with torch.no_grad():
        net[0].weight.mul_(7), net[0].bias.mul_(7), net[2].weight.div_(7)
    assert measure(problem(net, x), "squared_path_norm")["value"] == pytest.approx(before, rel=1e-12)


def test_single_precision_and_nothing_disturbed():
    net = net_f()
    weight, state = net[0].weight.detach().clone(), torch.get_rng_state()
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    found = measure(Problem(net, init, (torch.eye(2), torch.zeros(2, dtype=torch.long))), "squared_path_norm")
    assert found["value"] == pytest.approx(67, rel=1e-14)
    assert torch.equal(weight, net[0].weight) and torch.equal(state, torch.get_rng_state())


def test_single_precision_convolutions():
    torch.manual_seed(0)
    net = randomised(Residual())
    x = torch.randn(4, 2, 6, 6, dtype=D)
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    values = [
        measure(Problem(net, init, (x, torch.arange(4) % 3), dtype=dtype), "squared_path_norm")["value"]
        for dtype in (torch.float32, torch.float64)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) * x


class InPlace(nn.Module):
    """The sum of two layers, kept in the first operand and not passed on; or in a part of it."""

    def __init__(self, part=False):
        super().__init__()
        self.first, self.layer, self.part = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), part

    def forward(self, x):
        z = self.first(x)
        if self.part:
            z[:, 1].add_(self.layer(x)[:, 0])
        else:
            z.add_(self.layer(x))
        return z


def test_sums_in_place():
    torch.manual_seed(0)
    net = InPlace()
    found = measure(problem(net, torch.randn(3, 2, dtype=D)), "squared_path_norm")["value"]
    first, second = net.first.weight.detach().square(), net.layer.weight.detach().square()
    assert found == pytest.approx(float((first + second).sum()), rel=1e-12)


class Rectified(nn.Module):
    """A copy of a layer's result is changed in place; the result itself goes on as it was."""

    def __init__(self, copy):
        super().__init__()
        self.first, self.layer, self.copy = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), copy

    def forward(self, x):
        z = self.first(x)
        changed = self.copy(z)
        changed += self.layer(x)
        return changed + z


@pytest.mark.parametrize("copy", [nn.LeakyReLU(), torch.clone, lambda z: z.clamp(-1, 1)])
def test_what_is_changed_in_place_is_a_copy(copy):
    torch.manual_seed(0)
    net = Rectified(copy)
    found = measure(problem(net, torch.randn(3, 2, dtype=D)), "squared_path_norm")["value"]
    first, second = net.first.weight.detach().square(), net.layer.weight.detach().square()
    assert found == pytest.approx(float((2 * first + second).sum()), rel=1e-12)


@torch.no_grad()
def test_a_batch_norm_behind_an_activation_is_a_layer_of_its_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 2)).to(D).eval()
    norm = net[2]
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.normal_(), norm.bias.normal_()
    found = measure(problem(net, torch.randn(3, 2, dtype=D)), "squared_path_norm")["value"]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    hidden = net[0].weight.square().sum(1) + net[0].bias.square()
    hidden = hidden * scale.square() + (norm.bias - scale * norm.running_mean).square()
    assert found == pytest.approx(float((net[3].weight.square() @ hidden + net[3].bias.square()).sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2)), "Gelu"),
        (Product(), "mul"),
        (InPlace(part=True), "CopySlices"),
    ],
)
def test_does_not_apply(net, words):
    found = evaluate(problem(net, torch.randn(3, 2, dtype=D)), ["squared_path_norm"])
    assert "squared_path_norm" not in found.quantities
    assert words in found.notes["squared_path_norm"]
