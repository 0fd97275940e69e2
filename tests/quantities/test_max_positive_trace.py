"""The largest positive trace of a sample: exact, and estimated within its error."""

import numpy as np
import pytest
import torch
from cases import D
from shared_problems import CHOSEN
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

import genbound
from genbound.data.samples import ListSamples
from genbound.engines.in_process import InProcess
from genbound.estimators.draws import Sampler
from genbound.evaluation.stage import StoredContext, open_store
from genbound.network.problem import Problem
from genbound.network.tape import Tape
from genbound.quantities.catalogue.hessian_trace import HessianTraceOptions
from genbound.quantities.trace_look import first_look, look_by_sample


@pytest.mark.parametrize("name", CHOSEN)
def test_max_positive_trace_exact(name, problems, truths):
    rows = genbound.evaluate(problems(name), ["max_positive_trace"]).quantities["max_positive_trace"]["layers"]
    for layer in truths(name).layers:
        values = truths(name).positive_traces(layer)
        assert rows[layer]["value"] == pytest.approx(float(values.max()), rel=1e-8, abs=1e-10)
        assert rows[layer]["sem"] == 0.0 and rows[layer]["exact"]
        assert rows[layer]["lower"] == rows[layer]["value"] == rows[layer]["upper"]
        if float(values.max()) > 1e-9:
            assert float(values[rows[layer]["sample"]]) == pytest.approx(float(values.max()), rel=1e-8)


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "twice", "siamese", "custom_loss", "bounded"])
def test_max_positive_trace_estimated(name, problems, truths):
    """Stochastic Lanczos quadrature: of the sample it names, within its interval; never above the maximum by more."""
    options = {"dense_products": 0, "candidates": 12, "num_steps": 40, "num_probes": 60}
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
        error = 4 * row["sem"] + 1e-9 * truth
        assert row["lower"] - error <= truth <= row["upper"] + error, layer
        assert row["value"] == pytest.approx((row["lower"] + row["upper"]) / 2)
        assert row["lower"] <= float(values.max()) + 4 * row["sem"] + 1e-6 * max(1.0, truth)
    assert ("lower estimates" in summary["note"]) == (len(psd) < len(summary["layers"]))


@pytest.mark.parametrize("exact_outputs", [0, 64])
def test_a_look_by_sample_finds_what_the_whole_look_does(problems, exact_outputs):
    """The same numbers of every sample, whatever is in its shard; errors of the Gauss-Newton part alone."""
    problem, options = problems("mlp_gelu"), HessianTraceOptions(exact_outputs=exact_outputs, num_factors=8)
    layers = len(problem.layers)
    context = StoredContext("hessian_trace", 3, options, {}, open_store(None, "hessian_trace"))
    whole, one = first_look(problem, context, options, "look"), look_by_sample(problem, 3, options)
    parts = [one(range(i, min(i + 2, problem.num_samples))) for i in range(0, problem.num_samples, 2)]
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    trace = whole.gauss_newton + whole.remainder
    assert found["value"] == pytest.approx(trace.samples[:, :layers], rel=1e-12)
    assert found["sem"] == pytest.approx(np.sqrt(whole.gauss_newton.noise[:, :layers]), rel=1e-12)
    assert found["probe_std"] == pytest.approx(whole.probes.std(1, ddof=1), rel=1e-9, abs=1e-12)
    assert (found["sem"] > 0).any() == (exact_outputs == 0) and found["probe_std"].any()


class Backwards(InProcess):
    """Computes the parts in another order, as several processes do, and notes how many there were."""

    def map(self, stage, items, function):
        self.titles = [*getattr(self, "titles", []), (stage.title.partition(": ")[2], len(items))]
        return [function(item) for item in reversed(items)][::-1]


def test_the_steps_of_an_estimate_go_side_by_side(problems):
    options = {"max_positive_trace": {"dense_products": 0, "candidates": 5, "finalists": 2, "num_probes": 4}}
    engine = Backwards()
    found = genbound.evaluate(problems("mlp_gelu"), ["max_positive_trace"], options=options, engine=engine)
    again = genbound.evaluate(problems("mlp_gelu"), ["max_positive_trace"], options=options)
    assert found.quantities == again.quantities
    rows = found.quantities["max_positive_trace"]["layers"].values()
    estimated = sum(not row["exact"] for row in rows)
    stages, counts = zip(*engine.titles[-4:], strict=True)
    assert estimated > 0 and stages == ("layers", "screen", "choose", "measure")
    assert (counts[0], counts[3]) == (len(rows), estimated)  # beside the sample of the largest trace:
    assert counts[1] - 5 * estimated in range(estimated + 1) and counts[2] - 2 * estimated in range(estimated + 1)


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


@pytest.mark.parametrize("steps", [1, 40])
def test_an_estimate_is_no_less_than_a_trace_that_is_known(steps):
    """A sample's positive part has at least its trace; screening by one probe may well miss the one that stands out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 14), nn.Tanh(), nn.Linear(14, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    x, y = torch.randn(30, 12, dtype=D), torch.randint(0, 3, (30,))
    init = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    options = {"max_positive_trace": {"dense_products": 0, "num_steps": steps, "num_probes": 2}}
    for seed in range(2):
        results = genbound.evaluate(Problem(model, init, (x, y)), ["max_positive_trace"], seed, options=options)
        known = results.samples.groupby("layer")["hessian_trace"].max()
        assert not results.samples["hessian_trace_num_probes"].any()
        for layer, row in results.quantities["max_positive_trace"]["layers"].items():
            assert known[layer] * (1 - 1e-9) <= row["lower"] <= row["value"] <= row["upper"], layer


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


class Encoder(nn.Module):
    """A transformer's layer on sequences: blocks of some hundred dimensions, with many small negative eigenvalues."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.inner = nn.TransformerEncoderLayer(12, 2, 20, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.inner(self.first(x)).mean(1))


class Recurrent(nn.Module):
    """A weight that acts at every step: a block in weight space."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.RNN(8, 14, batch_first=True), nn.Linear(14, 3)

    def forward(self, x):
        return self.head(self.inner(x)[0][:, -1])


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv1d(8, 10, 3), nn.Conv1d(10, 10, 3), nn.Linear(10, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.two(torch.nn.functional.softplus(self.one(x.mT)))).mean(2))


def trained(kind, loss=0.2):
    torch.manual_seed(0)
    model, x, y = kind().to(D), torch.randn(16, 6, 8, dtype=D), torch.randint(0, 3, (16,))
    init = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    while (found := cross_entropy(model(x), y)) > loss:
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    return Problem(model.eval(), init, (x, y), batch_size=16, dtype=D), model, x, y


def eigenvalues(model, x, y, layer, sample):
    """Of one sample's dense block."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    weight = params[layer]

    def loss(w):
        outputs = functional_call(model, {**params, layer: w.view_as(weight)}, (x[[sample]],))
        return cross_entropy(outputs, y[[sample]])

    with sdpa_kernel(SDPBackend.MATH):
        h = hessian(loss)(weight.flatten())
    return torch.linalg.eigvalsh(0.5 * (h + h.mT))


def forced(problem, seed, **options):
    options = {"max_positive_trace": {"dense_products": 0, **options}, "hessian_trace": {"exact_products": 0}}
    found = genbound.evaluate(problem, ["max_positive_trace"], seed, options=options)
    rows = found.quantities["max_positive_trace"]["layers"]
    return {layer: row for layer, row in rows.items() if row["method"] == "stochastic Lanczos quadrature"}


@pytest.mark.parametrize("steps", [4, 40])
def test_an_estimate_of_few_steps_is_wide_and_not_wrong(steps):
    problem, *parts = trained(Encoder)
    for layer, row in forced(problem, 0, num_steps=steps).items():
        truth = float(eigenvalues(*parts, layer, row["sample"]).clamp(min=0).sum())
        assert row["lower"] - 3 * row["sem"] <= truth <= row["upper"] + 3 * row["sem"], layer
        assert (row["upper"] - row["lower"]) / truth <= (2 if steps == 4 else 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Encoder, Recurrent, Convolutions])
def test_coverage_of_the_estimates(kind):
    """Interval and 1.96 standard errors of its probes, over seeds and all layers that are curved."""
    (problem, *parts), truths, inside = trained(kind), {}, []
    for seed in range(40):
        for layer, row in forced(problem, seed).items():
            key = layer, row["sample"]
            if key not in truths:
                truths[key] = float(eigenvalues(*parts, *key).clamp(min=0).sum())
            inside.append(row["lower"] - 1.96 * row["sem"] <= truths[key] <= row["upper"] + 1.96 * row["sem"])
    print(f"{kind.__name__}: {100 * sum(inside) / len(inside):.1f} % of {len(inside)}")
    assert len(inside) >= 80 and sum(inside) >= 0.93 * len(inside)


class Words(nn.Module):
    """A label for each position, out of many."""

    def __init__(self, words):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, words)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)))


def words_problem(words, positions, num=12):
    torch.manual_seed(0)
    model = Words(words).double()
    x = torch.randn(num, positions, 6, dtype=D) * torch.linspace(0.5, 1.5, num, dtype=D)[:, None, None]
    y = torch.randint(0, words, (num, positions))
    return Problem(model, {name: torch.zeros_like(p) for name, p in model.named_parameters()}, (x, y))


def head_traces(problem):
    """Of the head's block, in closed form: the mean over the positions of |x|^2 (1 - |p|^2)."""
    x = problem.batch(list(range(problem.num_samples))).inputs
    with torch.no_grad():
        h = torch.tanh(problem.model.inner(x))
        p = problem.model.head(h).softmax(-1)
    return (h.square().sum(-1) * (1 - p.square().sum(-1))).mean(1)


def test_gauss_newton_parts_of_very_many_outputs_are_estimated(monkeypatch):
    """A backward pass for each of 30,000 outputs would not end; random combinations of them do."""
    problem, seen = words_problem(5_000, 6), []
    backward = Tape.backward
    monkeypatch.setattr(Tape, "backward", lambda *args: seen.append(1) or backward(*args))
    options = {"max_positive_trace": {"num_steps": 4, "num_probes": 4, "candidates": 3, "finalists": 2}}
    options["hessian_trace"] = {"max_probes": 1, "small_probes": 1, "exact_products": 0}
    row = genbound.evaluate(problem, ["max_positive_trace"], options=options)
    row, truths = row.quantities["max_positive_trace"]["layers"]["head.weight"], head_traces(problem)
    assert row["method"] == "gauss-newton by combinations" and not row["exact"]
    truth = float(truths[problem.indices.index(row["sample"])])
    assert 0 < row["sem"] < 0.2 * truth and row["lower"] == row["value"] == row["upper"]
    assert abs(row["value"] - truth) <= 4 * row["sem"] and truth >= 0.95 * float(truths.max())
    assert len(seen) < 200


def test_gauss_newton_parts_of_some_hundred_outputs_are_exact():
    problem = words_problem(100, 6)
    options = {"hessian_trace": {"max_probes": 1, "small_probes": 1, "exact_products": 0}}
    found = genbound.evaluate(problem, ["max_positive_trace"], options=options)
    row = found.quantities["max_positive_trace"]["layers"]["head.weight"]
    assert row["method"] == "gauss-newton of candidates" and row["sem"] == 0
    assert row["value"] == pytest.approx(float(head_traces(problem).max()), rel=1e-9)


def test_screening_choosing_and_measuring_draw_anew(monkeypatch):
    """The largest of noisy numbers that is measured by the same numbers would be too large."""
    problem, seen = words_problem(60, 2), []
    draws = Sampler.draws
    monkeypatch.setattr(Sampler, "draws", lambda self, at, num: seen.append((self.kind, *at)) or draws(self, at, num))
    options = {"max_positive_trace": {"dense_products": 0, "num_steps": 5, "num_probes": 4, "candidates": 3}}
    options["hessian_trace"] = {"exact_outputs": 8, "max_probes": 1, "small_probes": 1, "exact_products": 0}
    genbound.evaluate(problem, ["max_positive_trace"], options=options)
    own = [key for key in seen if key[0].startswith("max_positive_trace")]
    assert len(own) == 3 + 2 + 1 and len(set(own)) == len(own) and len({kind for kind, _ in own}) == 3


def test_the_errors_of_combinations_are_those_of_seeds():
    problem = words_problem(60, 2)
    truths = head_traces(problem)
    options = {"max_positive_trace": {"dense_products": 0, "num_steps": 5, "num_probes": 4}}
    options["hessian_trace"] = {"exact_outputs": 8, "max_probes": 1, "small_probes": 1, "exact_products": 0}
    away = []
    for seed in range(12):
        found = genbound.evaluate(problem, ["max_positive_trace"], seed=seed, options=options)
        row = found.quantities["max_positive_trace"]["layers"]["head.weight"]
        away.append((row["value"] - float(truths[problem.indices.index(row["sample"])])) / row["sem"])
    away = torch.tensor(away)
    assert float(away.abs().max()) < 4 and 0.4 < float(away.square().mean().sqrt()) < 1.7
