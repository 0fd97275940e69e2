"""The forecast of all quantities against the multiplications that an evaluation does, both in gradients."""

import pytest
import torch
from multiplications import taken
from small_nets import Attending
from torch import nn

import genbound
from genbound.evaluation.effort import plan
from genbound.evaluation.forecast import expected_gradients
from genbound.evaluation.selection import select

FACTOR = 1.5
TO_ERROR = {name: {"error": 0.1} for name in ("hessian_trace", "noise_stability")}


def convolutions():
    layers = []
    for i, (inputs, outputs) in enumerate(((3, 10), (10, 20), (20, 20))):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=1 + (i > 0), padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5))


def connected():
    layers = [
        nn.Linear(32, 96),
        nn.GELU(),
        nn.LayerNorm(96),
        nn.Linear(96, 96),
        nn.GELU(),
        nn.Linear(96, 96),
        nn.Tanh(),
    ]
    return nn.Sequential(*layers, nn.Linear(96, 4))


# The network, a sample's shape, classes, how far they are apart, and the learning rate.
NETWORKS = {
    "shallow attention": (lambda: Attending(depth=1, classes=3), (9, 24), 3, 0.35, 1e-3),
    "attention": (lambda: Attending(classes=3), (9, 24), 3, 0.35, 1e-3),
    "convolutions": (convolutions, (3, 8, 8), 5, 0.4, 5e-3),
    "connected": (connected, (32,), 4, 0.35, 1e-3),
}


def tuned(name, num, total, epochs=6):
    """A few epochs on classes with noise."""
    make, shape, classes, apart, rate = NETWORKS[name]
    torch.manual_seed(0)
    model, labels = make(), torch.arange(total) % classes
    x = apart * torch.randn(classes, *shape)[labels] + torch.randn(total, *shape)
    init = {key: value.detach().clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(epochs):
        for some in torch.randperm(total).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[some]), labels[some]).backward()
            optimizer.step()
    return genbound.Problem(model.eval(), init, (x, labels), num_samples=num, batch_size=16)


def forecast_and_taken(problem, options, monkeypatch):
    """Gradients over the measured samples, of what is measured."""
    found, planned = taken(problem, monkeypatch, options), plan(problem, select(None, options), "standard")
    expected = {
        name: expected_gradients(problem, name, chosen)
        for name, chosen in planned.selection.options.items()
        if name in planned.gradients
    }
    assert set(expected) == {name for name in found if name in planned.gradients}
    return sum(expected.values()), sum(found.values())


@pytest.mark.parametrize("options", [{}, pytest.param(TO_ERROR, marks=pytest.mark.slow)], ids=["default", "error 0.1"])
def test_an_evaluation_takes_what_is_forecast(options, monkeypatch):
    expected, done = forecast_and_taken(tuned("shallow attention", 32, 200), options, monkeypatch)
    assert done / FACTOR < expected < done * FACTOR


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, TO_ERROR], ids=["default", "error 0.1"])
@pytest.mark.parametrize("name", ["attention", "convolutions", "connected"])
def test_an_evaluation_of_64_samples_takes_what_is_forecast(name, options, monkeypatch):
    expected, done = forecast_and_taken(tuned(name, 64, 400), options, monkeypatch)
    assert done / FACTOR < expected < done * FACTOR
