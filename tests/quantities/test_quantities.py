"""Every quantity against the dense truth, or against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from cases import CASES, MLP_LAYERS, D, mlp
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.data.samples import ListSamples
from genbound.errors import GenboundError
from genbound.network.problem import Problem
from genbound.quantities.noise_stability import is_quadratic, relative_rss

# One of each kind; the curvature products of all cases are tested in test_curvature.py.
CHOSEN = (
    "mlp_gelu", "conv_silu", "encoder_tied", "time_first", "twice", "siamese", "gpt_conv1d", "tokens", "weight_norm",
    "lstm", "squared_error", "multi_label", "bounded", "clipped", "custom_loss", "unused", "conv_relu", "embedding",
)  # fmt: skip


@pytest.fixture(scope="session")
def truths():
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = CASES[name].truth()
        return kept[name]

    return get


# -- losses -------------------------------------------------------------------------------------------------------


def linear(weight, x, y, init=0.0, **arguments):
    weight = torch.as_tensor(weight, dtype=D)
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(D)
    with torch.no_grad():
        model.weight.copy_(weight)
    init = {"weight": torch.full_like(weight, init)}
    return Problem(model, init, (torch.as_tensor(x, dtype=D), torch.as_tensor(y)), dtype=D, **arguments)


def test_losses_by_hand():
    """Identity network, scores (1, 0), (0, 2), (0, 0): -log softmax by hand, and one sample in each batch but the first."""
    x = [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    test = (torch.tensor([[3.0, 0.0]], dtype=D), torch.tensor([1]))
    problem = linear([[1.0, 0.0], [0.0, 1.0]], x, [0, 0, 1], batch_size=2, test_data=test)
    found = genbound.measure(problem, "losses")
    each = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2)), math.log(2)]
    assert found["train_loss"] == pytest.approx(sum(each) / 3, rel=1e-12)  # not the mean of batch means
    assert found["train_error"] == pytest.approx(2 / 3)  # a tie goes to the first class
    assert found["largest_loss"] == pytest.approx(each[1], rel=1e-12)
    assert found["test_loss"] == pytest.approx(math.log(1 + math.exp(3)), rel=1e-12)
    assert found["generalization_gap"] == pytest.approx(found["test_loss"] - found["train_loss"], rel=1e-12)
    assert found["error_gap"] == pytest.approx(1 / 3)
    p = 2 / 3
    assert found["constant_loss"] == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-12)
    assert found["constant_error"] == pytest.approx(1 / 3)
    assert found["train_loss_sem"] == 0.0


def test_losses_are_over_all_the_data_not_the_measured_part():
    x, y = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), [0, 1, 0, 1, 1, 0, 0, 1, 1]
    whole = genbound.measure(linear([[1.0, 0.0], [0.0, 1.0]], x, y), "losses")
    part = genbound.measure(linear([[1.0, 0.0], [0.0, 1.0]], x, y, num_samples=3), "losses")
    assert whole["train_loss"] == part["train_loss"] and part["num_train"] == 9
    of_more = genbound.measure(linear([[1.0, 0.0], [0.0, 1.0]], x, y, num_data=100), "losses")
    values = F.cross_entropy(x.double(), torch.tensor(y), reduction="none").numpy()
    expected = values.std(ddof=1) / 3 * math.sqrt(1 - 9 / 100)
    assert of_more["train_loss_sem"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["tokens", "bounded", "clipped", "multi_label", "squared_error", "custom_loss"])
def test_losses_against_the_reference(name, problems, truths):
    found = genbound.measure(problems(name), "losses")
    expected = truths(name).losses()
    assert found["train_loss"] == pytest.approx(float(expected.mean()), rel=1e-12)
    assert found["largest_loss"] == pytest.approx(float(expected.max()), rel=1e-12)


def test_bounded_cross_entropy_and_its_range():
    problem = linear([[1.0], [0.0], [0.0]], [[-50.0], [50.0]], [0, 0], loss_range="bounded:0.01")
    results = genbound.evaluate(problem, ["losses"])
    # p = 0 gives -ln 0.01, p = 1 gives -ln(0.01 + 0.97)
    assert results.quantities["losses"]["largest_loss"] == pytest.approx(-math.log(0.01), rel=1e-9)
    assert results.quantities["losses"]["train_loss"] == pytest.approx(-(math.log(0.01) + math.log(0.98)) / 2, rel=1e-9)
    assert results.config["loss_range"] == {"value": pytest.approx(-math.log(0.01)), "kind": "bounded:0.01"}


def test_token_error_and_loss_count_the_labelled_positions():
    x = torch.zeros(2, 3, 1)
    y = torch.tensor([[0, 1, -100], [1, -100, -100]])
    found = genbound.measure(linear([[1.0], [0.0]], x, y), "losses")
    assert found["train_error"] == pytest.approx(0.75)  # (1/2 + 1) / 2: sequences, not tokens
    assert found["train_loss"] == pytest.approx(math.log(2))


# -- displacement_norm ----------------------------------------------------------------------------------------------


def test_displacement_norm():
    problem = linear([[3.0, 0.0], [0.0, 4.0]], [[1.0, 1.0]], [0], init=0.0)
    results = genbound.evaluate(problem, ["displacement_norm"])
    assert genbound.measure(problem, "displacement_norm")["weight"].value == pytest.approx(5.0)
    assert results.quantities["displacement_norm"]["total"]["value"] == pytest.approx(5.0)
    assert results.quantities["displacement_norm"]["layers"]["weight"]["init_norm"] == 0.0


@pytest.mark.parametrize("name", ["encoder_tied", "conv_relu"])
def test_displacement_norm_against_the_definition(name, problems, truths):
    found, truth = genbound.measure(problems(name), "displacement_norm"), truths(name)
    for layer in truth.layers:
        assert found[layer].value == pytest.approx(float(truth.v[layer].norm()), rel=1e-12)


# -- hessian_trace --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOSEN)
def test_hessian_trace_exact(name, problems, truths):
    results = genbound.evaluate(problems(name), ["hessian_trace"])
    found, truth = results.quantities["hessian_trace"], truths(name)
    total = 0.0
    for layer in truth.layers:
        expected = float(truth.traces(layer).mean())
        total += expected
        assert found["layers"][layer]["value"] == pytest.approx(expected, rel=1e-9, abs=1e-11)
        assert found["layers"][layer]["sem"] == 0.0
    assert found["total"]["value"] == pytest.approx(total, rel=1e-9, abs=1e-10)
    assert found["num_probes"] == 0


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("encoder_tied", "time_first", "lstm") else n for n in CHOSEN],
)
def test_hessian_trace_stochastic(name, problems, truths):
    """Probes for the remainder, and random factors for the Gauss-Newton part."""
    truth, problem = truths(name), problems(name)
    expected = {layer: float(truth.traces(layer).mean()) for layer in truth.layers}
    for options in ({"exact_products": 0}, {"exact_products": 0, "exact_outputs": 0}):
        options |= {"layer_sem": 0.3, "total_sem": 0.1}
        results = genbound.evaluate(problem, ["hessian_trace"], seed=1, options={"hessian_trace": options})
        found = results.quantities["hessian_trace"]
        for layer, value in expected.items():
            row = found["layers"][layer]
            assert abs(row["value"] - value) <= 4 * row["sem"] + 1e-9, (layer, options)
        total = found["total"]
        assert abs(total["value"] - sum(expected.values())) <= 4 * total["sem"] + 1e-9
        curved = any(layer.curved_by for layer in problem.layers)
        assert (found["num_probes"] > 0) == curved
        # Rademacher probes of a diagonal block (a lookup, then a function of each entry) have no spread.
        assert (total["sem"] > 0) == ((curved and name != "embedding") or "exact_outputs" in options)


@pytest.mark.parametrize("targets", [{"layer_sem": 0.02, "total_sem": 0.5}, {"layer_sem": 5.0, "total_sem": 0.002}])
def test_hessian_trace_by_sweeps(targets, monkeypatch):
    """Separate sweeps for hard samples, joint ones for the total: unbiased, with right errors, and the layers add up."""
    from genbound.quantities import hessian_trace

    plans, original = [], hessian_trace.plan_probes

    def spy(*args, **kwargs):
        plans.append(original(*args, **kwargs))
        return plans[-1]

    monkeypatch.setattr(hessian_trace, "plan_probes", spy)
    monkeypatch.setattr(hessian_trace, "SMALL", 0)  # no more probes than the cap, however small the problem
    problem = CASES["mlp_gelu"].problem()
    exact = genbound.evaluate(problem, ["hessian_trace"]).quantities["hessian_trace"]
    z = []
    for seed in range(20):
        options = {"exact_products": 0, "max_probes": 32, **targets}
        found = genbound.evaluate(problem, ["hessian_trace"], seed, options={"hessian_trace": options})
        found = found.quantities["hessian_trace"]
        rows = [found["layers"][name] for name in found["layers"]]
        assert sum(row["value"] for row in rows) == pytest.approx(found["total"]["value"], rel=1e-10)
        pairs = [*zip(rows, exact["layers"].values(), strict=True), (found["total"], exact["total"])]
        # A block whose own signs have no cross terms is exact in a separate sweep.
        certain = [abs(a["value"] - b["value"]) <= 1e-10 for a, b in pairs]
        z.append(
            [np.nan if c else (a["value"] - b["value"]) / a["sem"] for c, (a, b) in zip(certain, pairs, strict=True)]
        )
    z = np.array(z)
    z = z[:, (~np.isnan(z)).sum(0) > 5]
    used = [plan.separate if targets["layer_sem"] < 1 else plan.joint for plan in plans]
    assert sum(kind.any() for kind in used) > 5
    assert (np.abs(np.nanmean(z, 0)) < 4 / np.sqrt((~np.isnan(z)).sum(0))).all()
    assert 0.6 < np.sqrt(np.nanmean(z**2)) < 1.4


def test_hessian_trace_of_softmax_regression():
    """Tr H = |x|^2 sum_c p_c (1 - p_c)."""
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 0.0]], dtype=D)
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=D)
    p = (x @ w.T).softmax(1)
    expected = float((x.square().sum(1) * (p * (1 - p)).sum(1)).mean())
    assert genbound.measure(linear(w, x, [0, 1, 2]), "hessian_trace")["weight"].value == pytest.approx(
        expected, rel=1e-12
    )


def test_data_sem_of_the_trace(problems, truths):
    """A part of the data: what the choice of samples adds, from the spread of the per-sample traces."""
    problem = CASES["mlp_relu"].problem(num_samples=4, sample_seed=5, num_data=70)
    found = genbound.measure(problem, "hessian_trace")
    for layer in MLP_LAYERS:
        values = truths("mlp_relu").traces(layer)[problem.indices].numpy()
        assert found[layer].value == pytest.approx(values.mean(), rel=1e-10)
        expected = values.std(ddof=1) / 2 * math.sqrt(1 - 4 / 70)
        assert found[layer].data_sem == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [("hessian_trace", {"num_pilot": 1}), ("hessian_trace", {"num_factors": 1}), ("hessian_trace", {"layer_sem": 0.0}),
     ("hessian_trace", {"max_probes": 0}), ("hessian_trace", {"total_sem": -1.0}),
     ("max_quadratic_form", {"tolerance": 0.0}), ("max_quadratic_form", {"tolerance": 1.0}),
     ("max_quadratic_form", {"max_products": 0}), ("max_quadratic_form", {"convention": "papers"}),
     ("max_quadratic_form", {"convention": "paper-code", "paper_batch_size": 0}),
     ("noise_stability", {"sigmas": ()}), ("noise_stability", {"sigmas": (0.0, 1.0)}),
     ("noise_stability", {"sigmas": (0.2, 0.1)}), ("noise_stability", {"num_shared": 0}),
     ("noise_stability", {"sigmas": (float("nan"),)}), ("noise_stability", {"relative_sem": 0.0}),
     ("max_positive_trace", {"num_probes": 1}), ("max_positive_trace", {"candidates": 0}),
     ("max_positive_trace", {"finalists": 0}), ("max_positive_trace", {"num_steps": 0}),
     ("hessian_trace", {"nonsense": 1})],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(name, options, problems):
    with pytest.raises(GenboundError):
        genbound.measure(problems("mlp_gelu"), name, **options)


# -- max_quadratic_form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.2, 0.01, 1e-6])
@pytest.mark.parametrize("name", CHOSEN)
def test_max_quadratic_form(name, tolerance, problems, truths):
    problem, truth = problems(name), truths(name)
    results = genbound.evaluate(
        problem, ["max_quadratic_form"], options={"max_quadratic_form": {"tolerance": tolerance}}
    )
    rows = results.quantities["max_quadratic_form"]["layers"]
    for layer in truth.layers:
        row, values = rows[layer], truth.positive_forms(layer)
        best = float(values.max())
        slack = 1e-12 * max(1.0, best)
        assert row["lower"] - slack <= best <= row["upper"] + slack, layer
        assert row["value"] == row["upper"]
        assert row["upper"] - row["lower"] <= tolerance * row["upper"] + slack, layer
        if best > 1e-12:
            assert float(values[row["sample"]]) >= best * (1 - tolerance) - slack
    table = results.samples.pivot(index="sample", columns="layer")
    for layer in truth.layers:
        values = truth.positive_forms(layer).numpy()
        assert (table["max_quadratic_form_lower", layer].to_numpy() <= values + 1e-10).all()
        assert (table["max_quadratic_form_upper", layer].to_numpy() >= values - 1e-10).all()


def test_max_quadratic_form_names_the_sample_of_the_data(truths):
    """The index is that of the data, not of the measured part."""
    problem = CASES["mlp_gelu"].problem(num_samples=4, sample_seed=2)
    found = genbound.measure(problem, "max_quadratic_form", tolerance=1e-6)
    assert problem.indices != [0, 1, 2, 3]
    for layer, interval in found.items():
        values = truths("mlp_gelu").positive_forms(layer)[problem.indices]
        assert interval.sample == problem.indices[int(values.argmax())]


def test_max_quadratic_form_in_single_precision(truths):
    for name in ("mlp_gelu", "encoder_tied", "conv_silu"):
        found = genbound.measure(CASES[name].problem(dtype=torch.float32), "max_quadratic_form")
        for layer, interval in found.items():
            best = float(truths(name).positive_forms(layer).max())
            assert interval.lower <= best <= interval.upper
            assert interval.upper - interval.lower <= 0.0101 * interval.upper


def test_max_quadratic_form_of_softmax_regression():
    """v'Hv = Var_p(Vx), by hand: x = 1, scores (0, 0), V = (1, -1): variance 1. Second sample: x = 2: 4 * p (1-p) * 4 ..."""
    problem = linear([[0.5], [-0.5]], [[0.0], [1.0]], [0, 1], init=0.0)
    p = 1 / (1 + math.exp(-1))
    found = genbound.measure(problem, "max_quadratic_form")["weight"]
    assert found.value == pytest.approx(p * (1 - p), rel=1e-9) and found.sample == 1


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("name", ["mlp_gelu", "encoder_tied", "mlp_relu"])
def test_paper_code_convention(name, size, truths):
    """The published scripts: max over batch means of v_i . (Hv)_i with the joint v, no truncation, head with v = W."""
    case, truth = CASES[name], truths(name)
    head = (case.layers[-1],)
    problem = case.problem(head=head)
    found = genbound.measure(problem, "max_quadratic_form", convention="paper-code", paper_batch_size=size)
    v = {n: truth.params[n].flatten() if n in head else truth.v[n] for n in case.layers}
    values = []
    for start in range(0, len(truth.inputs), size):
        h, where = truth.joint_hessian_of_mean(range(start, min(start + size, len(truth.inputs))))
        product = h @ torch.cat([v[n] for n in case.layers])
        values.append([float(v[n] @ product[where[n]]) for n in case.layers])
    for i, layer in enumerate(case.layers):
        assert found[layer].value == pytest.approx(max(row[i] for row in values), rel=1e-9, abs=1e-11)
    assert found[case.layers[0]].value != genbound.measure(problem, "max_quadratic_form")[case.layers[0]].value


# -- max_positive_trace ---------------------------------------------------------------------------------------------


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
    """Among more samples than there are candidates, one has inputs that are ten times as large and lies on the wrong side."""
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


# -- noise_stability ------------------------------------------------------------------------------------------------


def regression(n=40, seed=0, batch_size=16):
    r = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 5, generator=r, dtype=D), torch.randn(n, 3, generator=r, dtype=D)
    return linear(torch.randn(3, 5, generator=r), x, y, loss="squared_error", batch_size=batch_size), x


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


@pytest.mark.parametrize("seed", range(4))
def test_noise_stability_of_a_quadratic_loss_is_its_hessian_approximation(seed):
    """|(W + U)x - y|^2: I = sigma^2 * 3 * mean |x|^2 for any sigma, however large; Tr H = 2 * 3 * mean |x|^2."""
    problem, x = regression()
    sigmas = (1e-3, 0.1, 1.0, 30.0)
    results = genbound.evaluate(problem, ["noise_stability"], seed, options={"noise_stability": {"sigmas": sigmas}})
    square = float(x.square().sum(1).mean())
    assert results.quantities["hessian_trace"]["total"]["value"] == pytest.approx(6 * square, rel=1e-12)
    summary = results.quantities["noise_stability"]
    for row, sigma in zip(summary["sigmas"], sigmas, strict=True):
        assert row["hessian_approximation"] == pytest.approx(3 * sigma**2 * square, rel=1e-12)
        # A quadratic loss is its own second-order term: what is left of the spread is rounding.
        assert abs(row["value"] - row["hessian_approximation"]) <= 4 * row["sem"] + 1e-13 * row["value"] + 1e-14
        assert 0 < row["sem"] <= 0.06 * row["value"]
        assert row["quadratic_regime"]
    assert summary["leaves_quadratic_regime_at"] is None
    assert summary["relative_rss"] < 0.05


def test_noise_stability_notices_that_the_regime_is_left(problems):
    found = genbound.evaluate(
        problems("mlp_gelu"),
        ["noise_stability"],
        options={"noise_stability": {"sigmas": (0.01, 3.0, 30.0), "relative_sem": 5.0}},
    ).quantities["noise_stability"]
    assert found["sigmas"][0]["quadratic_regime"] and not found["sigmas"][2]["quadratic_regime"]
    assert found["leaves_quadratic_regime_at"] in (3.0, 30.0)


@pytest.mark.parametrize(
    "name", ["mlp_relu", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp_gelu", "conv_silu"))]
)
def test_noise_stability_at_small_noise(name, problems, truths):
    """Half of sigma^2 times the dense trace, layers only, whatever else the network has."""
    truth = truths(name)
    trace = sum(float(truth.traces(layer).mean()) for layer in truth.layers)
    found = genbound.measure(problems(name), "noise_stability", sigmas=(1e-3,), relative_sem=0.3)[1e-3]
    expected, sem = 0.5e-6 * trace, found.sem
    if name == "conv_silu":
        # One of its samples lies on a kink of a max-pool, which no Hessian sees: plain noise on the weights is the truth.
        rises = _plain_rises(problems(name), 1e-3, 1500)
        expected, own = rises.mean(), rises.std(ddof=1) / math.sqrt(len(rises))
        assert own < 0.05 * expected and abs(expected - 0.5e-6 * trace) > 4 * own
        sem = math.hypot(sem, own)
    assert abs(found.value - expected) <= 4 * sem + 2e-3 * abs(0.5e-6 * trace)


def _plain_rises(problem, sigma, num):
    """Antithetic rises of the mean loss under noise added to the weights themselves."""
    generator = torch.Generator().manual_seed(0)
    batches = [problem.batch(run) for run in problem.batches(range(problem.num_samples))]

    def loss(moved):
        with torch.no_grad():
            each = [
                problem.loss.per_sample(problem.forward({**problem.params, **moved}, b.inputs), b.targets)
                for b in batches
            ]
        return float(torch.cat(each).mean())

    base, rises = loss({}), []
    for _ in range(num):
        noise = {layer.name: torch.randn(layer.shape, generator=generator, dtype=D) for layer in problem.layers}
        pair = [loss({n: problem.params[n] + s * u for n, u in noise.items()}) for s in (sigma, -sigma)]
        rises.append(sum(pair) / 2 - base)
    return np.array(rises)


def test_noise_stability_with_a_single_draw_of_most_samples():
    """Values over seeds scatter about plain noise on the weights as their errors say."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(D)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    x = torch.randn(300, 4, generator=generator, dtype=D) * torch.linspace(0.1, 3, 300, dtype=D)[:, None]
    problem = Problem(model, init, (x, (x.sum(1) > 0).long()), dtype=D, batch_size=300)
    # No control: the mean of the second-order term is not known well enough for it, and it explains little at this sigma.
    options = {"noise_stability": {"sigmas": (1.0,), "relative_sem": 1.0, "num_shared": 2, "max_shared_samples": 8}}
    runs = [genbound.evaluate(problem, ["noise_stability"], seed, options=options) for seed in range(1000, 1032)]
    rows = [run.quantities["noise_stability"]["sigmas"][0] for run in runs]
    assert all(row["num_perturbations"] < 2 * 1.5 * 300 for row in rows)
    values, errors = np.array([r["value"] for r in rows]), np.array([r["sem"] for r in rows])
    assert 0.7 < values.std(ddof=1) / np.sqrt((errors**2).mean()) < 1.4
    plain = _plain_rises(problem, 1.0, 2000)
    assert abs(values.mean() - plain.mean()) <= 4 * np.hypot(values.std() / 32**0.5, plain.std() / len(plain) ** 0.5)


def test_std_over_shared_draws_is_the_published_spread():
    """One-sided shared draws on a linear loss: std = sigma * |gradient|, which no antithetic pair would show."""

    def linear_loss(outputs, targets):
        return outputs.flatten(1).sum(1)

    r = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=r, dtype=D)
    problem = linear(torch.randn(3, 4, generator=r), x, torch.zeros(20, dtype=torch.long), loss=linear_loss)
    row = genbound.evaluate(
        problem, ["noise_stability"], options={"noise_stability": {"sigmas": (0.1,), "num_shared": 400}}
    ).quantities["noise_stability"]["sigmas"][0]
    gradient = float(x.mean(0).norm()) * 3**0.5
    assert row["std"] == pytest.approx(0.1 * gradient, rel=0.12)
    assert row["value"] == pytest.approx(0.0, abs=1e-14)


# The table of the talk "Robust fine-tuning of deep neural networks with Hessian-based generalization guarantees".
SLIDE = {
    "resnet18": (
        (0.86, 1.13, 1.45, 1.82, 2.23, 2.65, 3.07, 3.47, 3.84, 4.15, 4.43),
        (1.07, 1.29, 1.54, 1.80, 2.09, 2.34, 2.73, 3.08, 3.46, 3.85, 4.27), 0.78,
    ),
    "resnet50": (
        (0.39, 1.12, 1.56, 2.10, 2.71, 3.30, 3.80, 4.17, 4.60, 4.77, 5.03),
        (1.24, 1.50, 1.79, 2.10, 2.43, 2.79, 3.18, 3.59, 4.02, 4.48, 4.97), 1.88,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIDE)
def test_relative_rss_of_the_slides_own_columns(name):
    noise, approximation, percent = SLIDE[name]
    assert 100 * relative_rss(noise, approximation) == pytest.approx(percent, abs=0.005)


def test_quadratic_regime_by_hand():
    assert is_quadratic(1.09, 1.0, 0.0) and not is_quadratic(1.11, 1.0, 0.0)
    assert is_quadratic(0.91, 1.0, 0.0) and not is_quadratic(0.89, 1.0, 0.0)
    assert is_quadratic(1.29, 1.0, 0.1) and not is_quadratic(1.31, 1.0, 0.1)


# -- nothing there --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_flat_everywhere_is_reported_as_zero():
    """Every sample above the ceiling: no curvature, no noise stability, no NaN without a reason, and a table."""
    problem = CASES["mlp_gelu"].problem(loss_range="clip:1e-6")
    measures = ["hessian_trace", "noise_stability", "max_positive_trace", "hessian_distance"]
    results = genbound.evaluate(problem, measures, options={"noise_stability": {"sigmas": (0.001,)}})
    assert results.quantities["hessian_trace"]["total"]["value"] == 0.0
    assert all(row["upper"] == 0 for row in results.quantities["max_quadratic_form"]["layers"].values())
    assert "hessian_distance" in results.to_markdown()
    assert results.bounds["hessian_distance"]["value"] == 0.0


def test_one_sample():
    build = mlp(nn.GELU, n=1)
    torch.manual_seed(0)
    model, x, y = build()
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    measures = [
        "hessian_trace", "max_quadratic_form", "max_positive_trace", "noise_stability", "hessian_distance", "trace_distance",
    ]  # fmt: skip
    results = genbound.evaluate(Problem(model, init, (x, y)), measures)
    assert not results.notes and "hessian_distance" in results.to_markdown()
    assert np.isfinite(results.bounds["hessian_distance"]["value"])


def test_numbers_that_are_not_finite_name_the_sample():
    """The first samples are fine, a later one overflows."""
    x = torch.ones(9, 2)
    x[7] = 3e38
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    problem = Problem(model, {"weight": torch.zeros(2, 2)}, (x, torch.arange(9) % 2))
    with pytest.raises(GenboundError, match="sample 7"):
        genbound.evaluate(problem, ["losses"])
    for quantity in ("hessian_trace", "max_quadratic_form", "noise_stability"):
        with pytest.raises(GenboundError, match="sample 7"):
            genbound.measure(problem, quantity)
