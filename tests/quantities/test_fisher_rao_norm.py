"""The Fisher-Rao norm against its definition, sample by sample."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genbound.estimators.estimate import data_sem
from genbound.evaluation.loop import measure
from genbound.network.problem import Problem

D = torch.float64


def problem(net, x, classes=3, **arguments):
    net = net.to(D).eval()
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    return Problem(net, init, (x, torch.arange(len(x)) % classes), batch_size=2, **arguments)


def radial(net, x, y):
    """``<w, dl/dw>`` of one sample by a plain gradient."""
    grads = torch.autograd.grad(F.cross_entropy(net(x[None]), y[None]), list(net.parameters()))
    return float(sum((g * p.detach()).sum() for g, p in zip(grads, net.parameters(), strict=True)))


def expected(net, x, classes=3):
    values = [radial(net, x[n], torch.tensor(n % classes)) for n in range(len(x))]
    return math.sqrt(sum(v * v for v in values) / len(values))


def homogeneous():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)
    )


def test_identity_on_a_homogeneous_network():
    net, x = homogeneous(), torch.randn(5, 4, dtype=D)
    found = measure(problem(net, x), "fisher_rao_norm")
    assert found["depth"] == 3
    assert found["value"] == pytest.approx(expected(net, x), rel=1e-10)
    assert found["parametric"] == pytest.approx(found["value"], rel=1e-10)
    assert found["identity_holds"] is True
    assert found["squared_sem"] == 0  # all samples are measured


@pytest.mark.parametrize(
    "chosen", [{"layers": "0.weight"}, {"layers": ["0.weight", "2.weight"]}, {"excluded": ["4.weight"]}]
)
def test_layers_that_are_not_measured_count(chosen):
    net, x = homogeneous(), torch.randn(5, 4, dtype=D)
    assert measure(problem(net, x, **chosen), "fisher_rao_norm") == measure(problem(net, x), "fisher_rao_norm")


def test_embeddings_count_where_they_are_measured():
    """Then the network is homogeneous of degree two, for all that is measured or not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3, bias=False))
    x = torch.arange(15).view(5, 3) % 7
    assert measure(problem(net, x), "fisher_rao_norm")["identity_holds"] is False
    found = measure(problem(net, x, layers="0.weight"), "fisher_rao_norm")
    assert found["depth"] == 2 and found["identity_holds"]


def test_formula_and_definition_part_with_biases():
    torch.manual_seed(1)
    net, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(5, 4, dtype=D)
    found = measure(problem(net, x), "fisher_rao_norm")
    assert found["parametric"] == pytest.approx(expected(net, x), rel=1e-10)
    assert found["identity_holds"] is False
    f = net(x).detach()
    gradient = f.softmax(-1) - F.one_hot(torch.arange(5) % 3, 3)
    assert found["value"] == pytest.approx(2 * float((gradient * f).sum(1).square().mean().sqrt()), rel=1e-10)


def test_model_expectation_sums_over_the_labels():
    net, x = homogeneous(), torch.randn(4, 4, dtype=D)
    found = measure(problem(net, x), "fisher_rao_norm")
    p = net(x).softmax(-1).detach()
    square = sum(float(p[n, c]) * radial(net, x[n], torch.tensor(c)) ** 2 for n in range(4) for c in range(3)) / 4
    assert found["model_expectation"] == pytest.approx(math.sqrt(square), rel=1e-10)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3, bias=False) for _ in range(3))

    def forward(self, x):
        x = self.a(x)
        return x + self.c(torch.relu(self.b(x)))


def test_depth_is_that_of_the_longest_path():
    torch.manual_seed(0)
    assert measure(problem(Branches(), torch.randn(3, 3, dtype=D)), "fisher_rao_norm")["depth"] == 3


def test_squared_error_has_no_model_expectation():
    torch.manual_seed(0)
    net, x = nn.Linear(3, 2, bias=False).to(D), torch.randn(4, 3, dtype=D)
    y = torch.randn(4, 2, dtype=D)
    found = measure(
        Problem(net, {"weight": torch.zeros(2, 3, dtype=D)}, (x, y), "squared_error", num_data=100), "fisher_rao_norm"
    )
    f = net(x).detach()
    inner = (2 * (f - y) * f).sum(1)
    assert found["model_expectation"] is None
    assert found["value"] == pytest.approx(float(inner.square().mean().sqrt()), rel=1e-10)
    assert found["squared_sem"] == pytest.approx(float(data_sem(inner.square().numpy(), np.zeros(4), 100)), rel=1e-10)


def test_measuring_disturbs_nothing():
    net, x = homogeneous(), torch.randn(5, 4, dtype=D)
    weights, state = [p.detach().clone() for p in net.parameters()], torch.get_rng_state()
    measured = problem(net, x)
    assert measure(measured, "fisher_rao_norm") == measure(measured, "fisher_rao_norm")
    assert all(torch.equal(a, b.float()) for a, b in zip(weights, net.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())
