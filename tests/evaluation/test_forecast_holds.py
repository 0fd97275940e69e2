"""The forecast of all quantities against the multiplications that an evaluation does, both in gradients."""

import pytest
import torch
from multiplications import Multiplications
from small_nets import Attending
from torch import nn

import genbound
from genbound.evaluation import loop
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
    with Multiplications() as counted:
        for run in problem.batches(range(problem.num_samples)):
            tape = problem.tape(run)
            torch.autograd.grad(tape.losses.sum(), [w for name, w in tape.weights.items() if tape.uses[name]])
    unit, taken, measure = counted.total, {}, loop.measure_stages
    planned = plan(problem, select(None, options), "standard")

    def measured(problem, context):
        with Multiplications() as counted:
            found = measure(problem, context)
        taken[context.name] = counted.total / unit
        return found

    monkeypatch.setattr(loop, "measure_stages", measured)
    genbound.evaluate(problem, options=options)
    expected = {
        name: expected_gradients(problem, name, chosen)
        for name, chosen in planned.selection.options.items()
        if name in planned.gradients
    }
    assert set(expected) == {name for name in taken if name in planned.gradients}
    return sum(expected.values()), sum(taken.values())


@pytest.mark.parametrize("options", [{}, pytest.param(TO_ERROR, marks=pytest.mark.slow)], ids=["default", "error 0.1"])
def test_an_evaluation_takes_what_is_forecast(options, monkeypatch):
    expected, taken = forecast_and_taken(tuned("shallow attention", 32, 200), options, monkeypatch)
    assert taken / FACTOR < expected < taken * FACTOR


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, TO_ERROR], ids=["default", "error 0.1"])
@pytest.mark.parametrize("name", ["attention", "convolutions", "connected"])
def test_an_evaluation_of_64_samples_takes_what_is_forecast(name, options, monkeypatch):
    expected, taken = forecast_and_taken(tuned(name, 64, 400), options, monkeypatch)
    assert taken / FACTOR < expected < taken * FACTOR
