"""Samples whose probability rounds to 1 in single precision: what little curvature they have is right all the same."""

import copy

import dense
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genbound


def stable(output, target):
    """Cross-entropy of label 0 that loses no digits."""
    return F.softplus(torch.logsumexp(output[1:] - output[0], 0))


@pytest.mark.parametrize("margin", [0.0, 14.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curvature_of_confident_samples(margin, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(10, 4)
        init = {name: p.detach() + 0.3 * torch.randn_like(p) for name, p in net.named_parameters()}
    with torch.no_grad():
        net[2].bias[0] += margin
    y, layer = torch.zeros(10, dtype=torch.long), "0.weight"
    truth = dense.Truth(net, init, list(x.double()), list(y), stable, [layer])
    moved = {name: p.to(dtype) for name, p in init.items()}
    problem = genbound.Problem(copy.deepcopy(net).to(dtype), moved, (x.to(dtype), y))
    names, options = ["hessian_trace", "max_quadratic_form"], {"hessian_trace": {"exact_products": 10**9}}
    found = genbound.evaluate(problem, names, options=options).quantities
    row, best = found["max_quadratic_form"]["layers"][layer], float(truth.positive_forms(layer).max())
    assert row["lower"] <= best <= row["upper"]
    trace = found["hessian_trace"]["layers"][layer]["value"]
    assert trace == pytest.approx(float(truth.traces(layer).mean()), rel=1e-5)
