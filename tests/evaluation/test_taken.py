"""What a default evaluation takes, counted in multiplications: each quantity what its budget says, and no more."""

import pytest
import torch
from multiplications import taken
from small_nets import Attending, Residual
from torch import nn

import genbound
from genbound.evaluation import effort
from genbound.evaluation.effort import GRADIENTS, PASSES, SHARE, plan
from genbound.evaluation.selection import select
from genbound.quantities import QUANTITIES

SLACK = 1.3  # by which a count of multiplications may exceed one of passes and products
NO_PASS = {"matrix_norms", "power_law", "spectral_norm", "structure", "layer_norms"}  # of weights, over no samples


def convolutions(activation):
    layers = [nn.Conv2d(3, 12, 3, padding=1), activation(), nn.Conv2d(12, 16, 3, padding=1), activation()]
    layers += [nn.Conv2d(16, 16, 3, stride=2, padding=1), activation(), nn.Flatten(), nn.Linear(256, 5)]
    return nn.Sequential(*layers)


CASES = {
    "curved, 8 samples": (lambda: Residual(64, 6), (64,), 3, 8, 8),
    "curved, 16 of 200": (lambda: Residual(64, 6), (64,), 3, 16, 200),
    "attention, 8 samples": (Attending, (9, 24), 10, 8, 8),
    "attention, 8 of 600": (Attending, (9, 24), 10, 8, 600),
    "many classes": (lambda: Residual(48, 3, 200), (48,), 200, 8, 40),
    "SiLU convolutions": (lambda: convolutions(nn.SiLU), (3, 8, 8), 5, 12, 60),
    "ReLU convolutions": (lambda: convolutions(nn.ReLU), (3, 8, 8), 5, 12, 60),
}


def problem_of(name):
    make, shape, classes, num, total = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    init = {key: 0.95 * p.detach() for key, p in model.named_parameters()}
    return genbound.Problem(model, init, (torch.randn(total, *shape), torch.arange(total) % classes), num_samples=num)


def of_single_samples(problem, monkeypatch):
    """Quantity -> gradients of single samples that it takes."""
    return {name: problem.num_samples * number for name, number in taken(problem, monkeypatch).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_quantity_takes_what_it_may_and_all_of_them_together(name, monkeypatch):
    """Also of a small network, where nothing counts as taking seconds."""
    monkeypatch.setattr(effort, "SMALL", 0)
    problem = problem_of(name)
    planned = plan(problem, select(None, {}), "standard").selection.options
    whole = GRADIENTS * problem.num_samples + PASSES * len(problem.data)
    found = {key: value for key, value in of_single_samples(problem, monkeypatch).items() if key not in NO_PASS}
    for key, value in found.items():
        may = QUANTITIES[key].gradients(problem, planned[key]) * problem.num_samples
        assert value <= SLACK * may + 0.01 * whole, f"{key} takes {value:.0f} in place of {may:.0f}"
        assert value <= SHARE * whole * 1.1, key
    assert sum(found.values()) <= whole
    assert {"losses", "hessian_trace", "max_quadratic_form", "noise_stability"} <= found.keys()
