"""Relative flatness against the definition on dense Hessians, its invariance under rescalings, and what has none."""

import numpy as np
import pytest
import torch
from torch import nn

import genbound
from genbound.estimators.estimate import data_sem

D = torch.float64


def problem(net, x, **arguments):
    net = net.to(D).eval()
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    arguments.setdefault("loss", "cross_entropy")
    y = arguments.pop("y", torch.arange(len(x)) % 3)
    return genbound.Problem(net, init, (x.to(D), y), **arguments)


def mlp(*sizes):
    layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def dense(given, name, neurons):
    """The definition: sum over pairs of neurons of their weights' product times the trace of their Hessian block.

    ``neurons`` gives a weight as ``[neurons, weights of one]``.
    """
    batch, weight = given.batch(range(given.num_samples)), given.params[name]

    def loss(w):
        return given.loss.per_sample(given.forward({**given.params, name: w}, batch.inputs), batch.targets).mean()

    hessian = torch.func.hessian(loss)(weight).reshape(*weight.shape, -1)
    place = neurons(torch.arange(weight.numel()).reshape(weight.shape))
    flat, w = hessian.reshape(weight.numel(), -1), neurons(weight)
    return sum(
        float(w[s] @ w[t]) * float(flat[place[s]][:, place[t]].trace()) for s in range(len(w)) for t in range(len(w))
    )


def rows(w):
    return w.flatten(1)


def test_against_the_definition():
    torch.manual_seed(0)
    given = problem(mlp(4, 5, 6, 3), torch.randn(7, 4))
    found = genbound.measure(given, "relative_flatness")
    assert list(found) == ["0.weight", "2.weight", "4.weight"]
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(dense(given, name, rows), rel=1e-9)
        assert (estimate.sem, estimate.data_sem, estimate.num_samples) == (0, 0, 7)


class Net(nn.Module):
    """Convolutions, one of them transposed, a layer on every token, and a head."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv1d(2, 4, 2), nn.ConvTranspose1d(4, 3, 2)
        self.tokens, self.head = nn.Linear(6, 4), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.tokens(self.up(self.conv(x).relu()).relu()).relu().flatten(1))


def test_convolutions_and_tokens():
    torch.manual_seed(1)
    given = problem(Net(), torch.randn(5, 2, 6))
    found = genbound.measure(given, "relative_flatness")
    for name in ("conv.weight", "tokens.weight", "head.weight"):
        assert found[name].value == pytest.approx(dense(given, name, rows), rel=1e-9)
    transposed = dense(given, "up.weight", lambda w: w.transpose(0, 1).flatten(1))
    assert found["up.weight"].value == pytest.approx(transposed, rel=1e-9)


class Bilinear(nn.Module):
    """A weight that is used twice, side by side."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.shared(x[:, 0]).relu() - self.shared(x[:, 1]).relu())


@pytest.mark.parametrize("loss_range", ["clip:20", "bounded:0.05"])
def test_a_weight_that_is_used_twice_and_a_loss_that_is_not_convex(loss_range):
    torch.manual_seed(2)
    given = problem(Bilinear(), torch.randn(6, 2, 3), loss_range=loss_range)
    found = genbound.measure(given, "relative_flatness")
    for name in ("shared.weight", "head.weight"):
        assert found[name].value == pytest.approx(dense(given, name, rows), rel=1e-9)


def test_least_squares_is_ridge_regression():
    """Of (w x - y)^2 the Hessian is 2 E[x x'], so that kappa is 2 |w|^2 E|x|^2."""
    torch.manual_seed(3)
    x = torch.randn(8, 3, dtype=D)
    given = problem(nn.Linear(3, 1, bias=False), x, loss="squared_error", y=torch.randn(8, 1, dtype=D))
    w = given.params["weight"]
    scale = float(
        torch.func.hessian(lambda f: given.loss.per_sample(f, torch.zeros(1, 1, dtype=D)).sum())(
            torch.zeros(1, 1, dtype=D)
        ).sum()
    )
    expected = scale * float(w.square().sum() * x.square().sum(1).mean())
    assert genbound.measure(given, "relative_flatness")["weight"].value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("by", ["layer", "neuron"])
def test_rescaling_changes_the_trace_and_not_the_relative_flatness(by):
    """Of every layer; with a number for each neuron, of all but the layer that reads the neurons."""
    torch.manual_seed(4)
    net, x = mlp(4, 5, 6, 3).to(D), torch.randn(9, 4)
    before = {n: genbound.measure(problem(net, x), n) for n in ("relative_flatness", "hessian_trace")}
    outputs = net(x.to(D))
    scale = torch.full((5,), 7.0, dtype=D) if by == "layer" else torch.tensor([0.1, 2.0, 30.0, 1.0, 0.5], dtype=D)
    with torch.no_grad():
        net[0].weight *= scale[:, None]
        net[0].bias *= scale
        net[2].weight /= scale
    assert torch.allclose(net(x.to(D)), outputs)
    after = {n: genbound.measure(problem(net, x), n) for n in ("relative_flatness", "hessian_trace")}
    for name in ("0.weight", "4.weight") if by == "neuron" else after["relative_flatness"]:
        expected = before["relative_flatness"][name].value
        assert after["relative_flatness"][name].value == pytest.approx(expected, rel=1e-9)
    assert abs(after["hessian_trace"]["0.weight"].value / before["hessian_trace"]["0.weight"].value - 1) > 0.1
    bound = genbound.evaluate(problem(net, x), ["petzka2021"]).bounds["petzka2021"]
    assert bound.value == pytest.approx(before["relative_flatness"]["4.weight"].value, rel=1e-9)
    assert (bound.kind, bound.vacuous, bound.note) == ("norm", None, "of the last layer, 4.weight")


def test_what_has_none_is_named():
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))
    results = genbound.evaluate(problem(net, torch.randn(6, 4)), ["relative_flatness", "petzka2021"])
    found = results.quantities["relative_flatness"]
    assert list(found["layers"]) == ["2.weight"] and found["feature_layer"] == "2.weight"
    assert "curved" in found["without"]["0.weight"] and results.bounds["petzka2021"].value > 0
    ends = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    bound = genbound.evaluate(problem(ends, torch.randn(6, 4)), ["petzka2021"]).bounds["petzka2021"]
    assert bound.value is None and "curved" in bound.note
    options = {"relative_flatness": {"exact_outputs": 2}}
    bound = genbound.evaluate(problem(mlp(4, 3), torch.randn(6, 4)), ["petzka2021"], options=options)
    assert "more than relative_flatness.exact_outputs" in bound.bounds["petzka2021"].note


def test_some_of_the_samples_have_an_error():
    torch.manual_seed(6)
    net, x = mlp(4, 6, 3), torch.randn(40, 4)
    part = genbound.measure(problem(net, x[:20], num_data=40), "relative_flatness")["2.weight"]
    each = [
        genbound.measure(problem(net, x[i : i + 1], y=torch.tensor([i % 3])), "relative_flatness") for i in range(20)
    ]
    values = np.array([found["2.weight"].value for found in each])
    assert part.value == pytest.approx(values.mean(), rel=1e-9)
    assert part.data_sem == pytest.approx(float(data_sem(values, np.zeros(20), 40)), rel=1e-9)
