"""The largest positive trace of a sample: exact, and estimated within its error."""

import pytest
import torch
from cases import D
from shared_problems import CHOSEN
from torch import nn

import genbound
from genbound.data.samples import ListSamples
from genbound.network.problem import Problem


@pytest.mark.parametrize("name", CHOSEN)
def test_max_positive_trace_exact(name, problems, truths):
    rows = genbound.evaluate(problems(name), ["max_positive_trace"]).quantities["max_positive_trace"]["layers"]
    for layer in truths(name).layers:
        values = truths(name).positive_traces(layer)
        assert rows[layer]["value"] == pytest.approx(float(values.max()), rel=1e-8, abs=1e-10)
        assert rows[layer]["sem"] == 0.0 and rows[layer]["exact"]
        if float(values.max()) > 1e-9:
            assert float(values[rows[layer]["sample"]]) == pytest.approx(float(values.max()), rel=1e-8)


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "twice", "siamese", "custom_loss", "bounded"])
def test_max_positive_trace_estimated(name, problems, truths):
    """Stochastic Lanczos quadrature: of the sample it names, within its error; never above the maximum by more."""
    options = {"dense_products": 0, "candidates": 12, "num_steps": 40, "subspace": 6, "num_probes": 60}
    results = genbound.evaluate(
        problems(name), ["max_positive_trace"],
        options={"max_positive_trace": options, "hessian_trace": {"exact_products": 0}},
    )  # fmt: skip
    summary = results.quantities["max_positive_trace"]
    psd = {layer.name for layer in problems(name).layers if layer.positive_semidefinite}
    for layer, row in summary["layers"].items():
        values = truths(name).positive_traces(layer)
        assert row["exact"] == (layer in psd)
        truth = float(values[row["sample"]])
        assert abs(row["value"] - truth) <= 4 * row["sem"] + 1e-6 * max(1.0, truth), layer
        assert row["value"] <= float(values.max()) + 4 * row["sem"] + 1e-6 * max(1.0, truth)
    assert ("lower estimates" in summary["note"]) == (len(psd) < len(summary["layers"]))


def test_max_positive_trace_finds_the_sample_that_stands_out():
    """Among more samples than there are candidates, one lies on the wrong side with inputs ten times as large."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 2)).double()
    x = 0.3 * torch.randn(40, 6, dtype=D)
    x[23] *= 10
    with torch.no_grad():
        y = model(x).argmax(1)
        y[23] = 1 - y[23]
    problem = Problem(model, {n: torch.zeros_like(p) for n, p in model.named_parameters()}, (x, y))
    options = {"dense_products": 0, "candidates": 3, "finalists": 2}
    found = genbound.evaluate(
        problem, ["max_positive_trace"], options={"max_positive_trace": options, "hessian_trace": {"exact_products": 0}}
    ).quantities["max_positive_trace"]["layers"]["0.weight"]
    exact = genbound.evaluate(problem, ["max_positive_trace"]).quantities["max_positive_trace"]["layers"]["0.weight"]
    assert exact["sample"] == found["sample"] == 23 and not found["exact"]
    assert abs(found["value"] - exact["value"]) <= 4 * found["sem"] + 0.01 * exact["value"]


def test_max_positive_trace_counts_the_products_of_long_samples():
    """A block grows with a sequence's length: what the shortest sample would cost says nothing of the others."""

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(32, 3, bias=False), nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.head(torch.tanh(self.inner(x)).mean(1))

    torch.manual_seed(0)
    items = [(torch.randn(length, 32, dtype=D), torch.tensor(i % 2)) for i, length in enumerate([1, 1, 20, 20])]
    model = Mean().to(D)
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    problem = Problem(model, init, ListSamples(items), dtype=D)
    for products, method in ((12, "stochastic Lanczos quadrature"), (2 * 3 + 2 * 60, "dense")):
        options = {"max_positive_trace": {"dense_products": products}}
        found = genbound.evaluate(problem, ["max_positive_trace"], options=options)
        assert found.quantities["max_positive_trace"]["layers"]["inner.weight"]["method"] == method
