"""The Hessian trace: exact and estimated, against the dense truth."""

import math

import numpy as np
import pytest
import torch
from cases import CASES, D
from shared_problems import CHOSEN, linear
from small_nets import MLP_LAYERS
from torch import nn

import genbound
from genbound.estimators.estimate import data_sem
from genbound.network import derivative_trial


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


LAYERS, TOTAL = {"layer_sem": 0.02, "total_sem": 0.5}, {"layer_sem": 5.0, "total_sem": 0.002}


@pytest.mark.parametrize(("targets", "controlled"), [(LAYERS, False), (TOTAL, False), (TOTAL, True)])
def test_hessian_trace_by_sweeps(targets, controlled, monkeypatch):
    """Separate sweeps for hard samples, joint ones for the total, with controls where these are said to pay.

    All are unbiased, with right errors, and the layers add up.
    """
    from genbound.quantities import remainder_probes

    plans, original = [], remainder_probes.plan_probes

    def spy(*args, **kwargs):
        plans.append(original(*args, **kwargs))
        return plans[-1]

    monkeypatch.setattr(remainder_probes, "plan_probes", spy)
    if controlled:
        monkeypatch.setattr(remainder_probes, "try_controls", lambda *_: {1: 0.2, 4: 0.1})
        monkeypatch.setattr(remainder_probes, "trial_passes", lambda _: 0.0)
    monkeypatch.setattr(remainder_probes, "SMALL", 0)  # no more probes than the cap, however small the problem
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
    used = [plan.vectors for plan in plans] if controlled else used
    assert sum(kind.any() for kind in used) > 5
    assert (np.abs(np.nanmean(z, 0)) < 4 / np.sqrt((~np.isnan(z)).sum(0))).all()
    assert 0.6 < np.sqrt(np.nanmean(z**2)) < 1.4


@pytest.mark.parametrize("name", ["encoder", "mlp_gelu"])
def test_controls_are_taken_where_a_trial_finds_that_they_pay(name, monkeypatch):
    """An encoder's joint draws have what few vectors know; those of a perceptron hardly have any spread at all."""
    from genbound.estimators.trace_plan import PAYS
    from genbound.quantities import remainder_probes

    ratios, plans = [], []
    tried, planned = remainder_probes.try_controls, remainder_probes.plan_probes
    monkeypatch.setattr(remainder_probes, "try_controls", lambda *a: ratios.append(tried(*a)) or ratios[-1])
    monkeypatch.setattr(remainder_probes, "plan_probes", lambda *a: plans.append(planned(*a)) or plans[-1])
    problem = CASES[name].problem()
    options = {"exact_products": 0, "total_sem": 0.001, "layer_sem": 5.0, "small_probes": 256}
    drawn = genbound.evaluate(problem, ["hessian_trace"], options={"hessian_trace": options})
    exact = genbound.evaluate(problem, ["hessian_trace"], options={"hessian_trace": {"exact_products": 10**9}})
    drawn, exact = (run.quantities["hessian_trace"]["total"] for run in (drawn, exact))
    assert abs(drawn["value"] - exact["value"]) < 4 * drawn["sem"]
    assert [list(found) for found in ratios] == [list(remainder_probes.LADDER)]
    assert plans[-1].vectors.any() == (min(ratios[0].values()) <= PAYS)
    assert (min(ratios[0].values()) < 1) == (name == "encoder")


def test_controls_are_the_same_in_whatever_order_their_parts_are_computed(monkeypatch):
    """A trial on several samples, and draws of which every sample has a control of its own."""
    from test_rounds import Shuffled

    from genbound.quantities import remainder_probes

    tried, found = remainder_probes.try_controls, []
    # The trial is the run's own; what it finds is made to pay.
    monkeypatch.setattr(
        remainder_probes,
        "try_controls",
        lambda *a: found.append(tried(*a)) or {k: r / 100 for k, r in found[-1].items()},
    )
    monkeypatch.setattr(remainder_probes, "trial_passes", lambda _: 0.0)
    options = {"hessian_trace": {"exact_products": 0, "max_probes": 8, "small_probes": 8, **TOTAL}}
    engine = Shuffled()
    runs = [
        genbound.evaluate(CASES["mlp_gelu"].problem(), ["hessian_trace"], options=options, engine=one)
        for one in (engine, None)
    ]
    assert runs[0].quantities == runs[1].quantities and found[0] == found[1]
    assert any("control" in title and num > 1 for title, num in engine.titles)


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
        expected = data_sem(values, np.zeros(4), 70)
        assert found[layer].data_sem == pytest.approx(expected, rel=1e-9)


def test_an_exact_remainder_costs_no_more_products_where_each_costs_more():
    """300 products: below the limit, but not below that of a network of 91,203 weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 300), nn.GELU(), nn.Linear(300, 3)).double()
        data = (torch.randn(1, 300, dtype=torch.float64), torch.tensor([1]))
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    problem = genbound.Problem(model, init, data, dtype=torch.float64)
    few, many = (
        genbound.evaluate(problem, "hessian_trace", options={"hessian_trace": {"exact_products": limit}})
        .quantities["hessian_trace"]
        for limit in (400, 430)
    )  # fmt: skip
    assert few["num_probes"] > 0 and many["num_probes"] == 0 and many["total"]["sem"] == 0
    assert abs(few["total"]["value"] - many["total"]["value"]) <= 4 * few["total"]["sem"] + 1e-10


def test_few_samples_of_a_large_network_have_fewer_first_probes(monkeypatch):
    """128 in all, or 32 where each is dear: the error is known a little worse, and holds."""
    problem = CASES["mlp_gelu"].problem()
    exact = genbound.evaluate(problem, ["hessian_trace"]).quantities["hessian_trace"]["total"]["value"]
    options = {"exact_products": 0, "layer_sem": 10.0, "total_sem": 10.0}

    def measured(seed):
        return genbound.evaluate(problem, ["hessian_trace"], seed, options={"hessian_trace": options})

    num = problem.num_samples
    assert measured(0).quantities["hessian_trace"]["num_probes"] == num * math.ceil(128 / num)
    monkeypatch.setattr(derivative_trial, "LARGE", 0)
    found = [measured(seed).quantities["hessian_trace"] for seed in range(20)]
    assert {row["num_probes"] for row in found} == {num * max(2, math.ceil(32 / num))}
    z = np.array([(row["total"]["value"] - exact) / row["total"]["sem"] for row in found])
    assert abs(z.mean()) < 4 / math.sqrt(20) and z.std() < 1.4
