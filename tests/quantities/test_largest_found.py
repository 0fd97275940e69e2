"""The largest quadratic form found among all samples: against the dense truth of every sample."""

import math
from itertools import product
from unittest import mock

import numpy as np
import pytest
import torch
from cases import CASES, Case
from shared_problems import CHOSEN, linear
from small_nets import mlp
from torch import nn

import genbound
from benchmarks.found_maximum import shortfall
from genbound.curvature.traces import at_results, gauss_newton_forms, remainder_forms
from genbound.errors import GenboundError
from genbound.quantities import look_at_all, promising_samples
from genbound.quantities.largest_found import _limit
from genbound.quantities.promising_samples import scores, size_tells


def found_on(problem, **options):
    options = {"maximum": "found"} | options
    return genbound.evaluate(problem, ["hessian_distance"], options={"max_quadratic_form": options})


@pytest.mark.parametrize("name", CHOSEN)
def test_it_is_the_maximum_where_every_sample_is_promising(name, problems, truths):
    """There are fewer samples than promising ones: the search is the certified maximum."""
    problem, truth = problems(name), truths(name)
    results = found_on(problem, layer_products=10**6)
    summary = results.quantities["max_quadratic_form"]
    assert summary["num_samples"] == len(problem.data)
    for layer in truth.layers:
        row, values = summary["layers"][layer], truth.positive_forms(layer)
        best, slack = float(values.max()), 1e-12 * max(1.0, float(values.max()))
        assert row["lower"] - slack <= best <= row["upper"] + slack, layer
        assert row["upper"] - row["lower"] <= 0.01 * row["upper"] + slack
        assert row["exceed_at_most"] == 0
        if best > 1e-12:
            assert float(values[row["sample"]]) >= 0.99 * best - slack


@pytest.mark.parametrize("name", ["mlp_gelu", "encoder_tied", "conv_silu", "mlp_relu", "squared_error", "bounded"])
def test_what_is_found_is_there_and_is_of_all_samples(name, truths):
    """Two samples are measured, and the maximum is over all of them; where nothing curves it is exact."""
    problem, truth = CASES[name].problem(num_samples=2), truths(name)
    rows = found_on(problem, num_promising=2, num_checked=0).quantities["max_quadratic_form"]["layers"]
    for layer in truth.layers:
        values, row = truth.positive_forms(layer), rows[layer]
        slack = 1e-10 * max(1.0, float(values.max()))
        assert row["lower"] <= values.max() + slack
        assert row["lower"] - slack <= values[row["sample"]] <= row["upper"] + slack
        if layer in CASES[name].psd:
            assert row["exact"] and abs(row["upper"] - float(values.max())) <= 1e-9 + slack


def test_few_samples_exceed_what_is_found_among_many():
    """300 samples of an untrained network, the hard case; the certified maximum looks at each of them."""
    problem = Case(lambda: wide_mlp(300), ("0.weight", "2.weight", "4.weight")).problem()
    certified = genbound.evaluate(problem, ["max_quadratic_form"])
    every = certified.samples.pivot(index="sample", columns="layer", values="max_quadratic_form_lower")
    summary = found_on(problem, num_promising=12, num_checked=30).quantities["max_quadratic_form"]
    for name, row in summary["layers"].items():
        largest = certified.quantities["max_quadratic_form"]["layers"][name]
        assert 0.9 * largest["lower"] <= row["upper"] and row["lower"] <= largest["upper"]
        assert (every[name] > row["upper"]).mean() <= row["exceed_at_most"] < 0.2
        assert row["exact"] is (name == "4.weight") and row["num_products"] < 250
    assert "max over all 300 (largest found); of the " in summary["note"] and "at 95% confidence" in summary["note"]


def test_joint_products_hold_the_layers_own_and_signs_take_the_others_off(problems):
    """One layer alone: its own remainder, exactly. All signs of three layers: their mean has no other layer in it."""
    problem = problems("mlp_gelu")
    tape = problem.tape(range(problem.num_samples))
    names = [layer.name for layer in problem.layers]
    own = {}
    for name in names:
        own[name] = tape.product(name, problem.displacement[name], "remainder")[0]
        alone, norm = remainder_forms(tape, at_results(tape, problem.displacement.of([name])), torch.ones(1, 1))
        assert alone[:, 0] == pytest.approx(own[name], rel=1e-10, abs=1e-14)
        assert (norm[:, 0] >= alone[:, 0].abs() - 1e-14).all()
    signs = torch.tensor(list(product((1.0, -1.0), repeat=len(names))))
    us = at_results(tape, problem.displacement.of(names))
    found, _ = remainder_forms(tape, us, signs)
    assert found.numpy() == pytest.approx(torch.stack(list(own.values()), 1).numpy(), rel=1e-9, abs=1e-13)
    one, _ = remainder_forms(tape, us, signs[:1])
    assert not np.allclose(one.numpy(), found.numpy(), rtol=1e-3)


def test_scores_follow_what_was_measured():
    source = np.random.default_rng(0)
    features = {"form": source.exponential(size=50), "size": source.exponential(size=50)}
    values = 2 * features["form"] + 3 * features["size"]
    found = scores(features, np.arange(12), values[:12])
    assert np.argmax(found) == np.argmax(values) and found == pytest.approx(values, rel=0.2)
    assert scores(features, np.arange(0), np.zeros(0)) == pytest.approx(features["form"])
    assert np.isfinite(scores(features, np.arange(3), np.zeros(3))).all()


def test_the_closer_look_finds_what_the_gradients_size_does_not():
    """Of 200 samples three get a product of their own in each layer: those that a closer look says, or others."""
    problem = Case(lambda: wide_mlp(200), ("0.weight", "2.weight", "4.weight")).problem()
    certified = genbound.evaluate(problem, ["max_quadratic_form"]).quantities["max_quadratic_form"]["layers"]
    reached = []
    for num_joint in (0, 2):
        found = found_on(problem, num_promising=3, num_checked=0, num_joint=num_joint)
        rows = found.quantities["max_quadratic_form"]["layers"]
        assert all(row["num_measured"] <= 3 for row in rows.values())
        reached.append(min(row["lower"] / certified[name]["lower"] for name, row in rows.items()))
    assert reached[0] < 0.5 and reached[1] > 0.98


def test_scouts_say_whether_the_gradients_size_tells_the_large_parts():
    sizes = np.arange(100.0)
    alike, told = np.ones(100), np.where(sizes >= 80, 4.0, 1.0)
    led = np.where(sizes == 5, 9.0, 1.0)
    assert size_tells(sizes, [told, told]) and size_tells(sizes, [alike]) and size_tells(sizes, [])
    assert not size_tells(sizes, [told, led])  # (2 + 1) / (2 + 3)
    assert size_tells(sizes, [told] * 19 + [np.where(sizes == 5, 9.0, 4.0)])  # 40 of 41


@pytest.mark.parametrize("tells", [True, False])
def test_where_the_size_tells_the_large_parts_curved_layers_have_them_from_the_closer_look(tells, monkeypatch):
    """The layer whose block is positive semidefinite by structure is exact all the same."""
    monkeypatch.setattr(look_at_all, "SCOUTS", 16)
    monkeypatch.setattr(look_at_all, "size_tells", lambda sizes, forms: tells)
    looked, whole = [], look_at_all.gauss_newton_forms

    def forms(tape, us, cotangents=None):
        looked.append((tuple(us), len(tape)))
        return whole(tape, us, cotangents)

    for module in (look_at_all, promising_samples):
        monkeypatch.setattr(module, "gauss_newton_forms", forms)
    problem = Case(lambda: wide_mlp(200), ("0.weight", "2.weight", "4.weight")).problem()
    certified = genbound.evaluate(problem, ["max_quadratic_form"]).quantities["max_quadratic_form"]["layers"]
    found = found_on(problem, num_promising=40).quantities["max_quadratic_form"]["layers"]
    every = [num for names, num in looked if len(names) == 3]
    assert sum(every) == (16 + 40 if tells else 16 + 200)  # scouts, and a fifth or all of them
    assert sum(num for _, num in looked) - sum(every) == (200 if tells else 0)
    assert found["4.weight"]["exact"]
    assert found["4.weight"]["upper"] == pytest.approx(certified["4.weight"]["upper"], rel=1e-6)
    for name, row in found.items():
        assert row["lower"] <= certified[name]["upper"] and row["lower"] >= 0.5 * certified[name]["lower"]


def wide_mlp(num):
    model, _, _ = mlp(nn.GELU)()
    inputs = torch.randn(num, 5, dtype=torch.float64)
    return model, inputs, (torch.arange(num) * 5 + 1) % 3


def test_gauss_newton_forms_are_those_of_the_dense_jacobian(problems):
    problem = problems("mlp_gelu")
    tape = problem.tape(range(problem.num_samples))
    found = gauss_newton_forms(tape, at_results(tape, problem.displacement))
    for i, name in enumerate(problem.displacement):
        for p in range(problem.num_samples):

            def outputs(weight, name=name, p=p):
                return problem.forward({**problem.params, name: weight}, problem.batch([p]).inputs)[0]

            jacobian = torch.func.jacrev(outputs)(problem.params[name]).flatten(1)
            u = jacobian @ problem.displacement[name].flatten()
            prob = outputs(problem.params[name]).softmax(0)
            expected = (prob * (u - prob @ u) ** 2).sum()
            assert found[p, i].item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-14)


def test_the_gradient_of_two_scores_has_the_gauss_newton_forms():
    """Where it was taken already, no backward pass is."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 2)).double()
    init = {name: 0.5 * p.detach() for name, p in net.named_parameters()}
    problem = genbound.Problem(net, init, (torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 2))
    one, two = (problem.tape(range(9)) for _ in range(2))
    us = at_results(two, problem.displacement)
    remainder_forms(two, us, torch.ones(1, 2))
    with mock.patch.object(two, "backward") as backward:
        found = gauss_newton_forms(two, us)
    assert not backward.called and not found.requires_grad
    expected = gauss_newton_forms(one, at_results(one, problem.displacement))
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-10) and expected.min() > 0


def test_random_combinations_stand_for_many_outputs():
    """Their mean square is that of all columns, up to a few standard errors."""
    torch.manual_seed(0)
    problem = linear(torch.randn(80, 4), torch.randn(3, 4), [1, 5, 70])
    tape = problem.tape(range(3))
    exact = gauss_newton_forms(tape, at_results(tape, problem.displacement))
    draws = [torch.randint(0, 2, (3, 80), dtype=torch.float64) * 2 - 1 for _ in range(4000)]
    assert gauss_newton_forms(tape, at_results(tape, problem.displacement), draws) == pytest.approx(exact, rel=0.12)
    row = found_on(problem).quantities["max_quadratic_form"]["layers"]["weight"]
    assert row["upper"] == pytest.approx(exact.max().item(), rel=1e-6)


@pytest.mark.parametrize(("others", "share", "checked"), [(200, 0.1, 32), (200, 0.03, 59), (50, 0.3, 8)])
def test_the_limit_holds_in_95_of_100_draws(others, share, checked):
    """Exactly: the number of larger ones among those drawn is hypergeometric."""
    larger = round(share * others)
    wrong = 0.0
    for seen in range(min(larger, checked) + 1):
        if larger / others > _limit(seen, checked, others):
            drawn = math.comb(larger, seen) * math.comb(others - larger, checked - seen)
            wrong += drawn / math.comb(others, checked)
    assert wrong <= 0.05
    assert _limit(0, 299, 6600) < 0.01 <= _limit(0, 298, 6600)  # the rule of three
    assert _limit(0, 0, 5) == 1 and _limit(2, 5, 5) == 0.4 and _limit(0, 0, 0) == 0


def test_the_table_says_that_it_was_searched_for():
    case = Case(lambda: wide_mlp(60), ("0.weight", "2.weight", "4.weight"))
    results = found_on(case.problem(num_samples=8), num_promising=4, num_checked=8)
    row = results.bounds["hessian_distance"]
    assert row["at_least"] and row["upper"] is None and "num_data" not in row
    table = results.to_markdown()
    assert "max over all 60 (largest found); of the " in table and "≥" in table
    again = found_on(case.problem(num_samples=8), num_promising=4, num_checked=8)
    assert again.quantities["max_quadratic_form"] == results.quantities["max_quadratic_form"]


def test_undecided_samples_are_not_said_to_be_below():
    """One product tells nothing of most samples: the note claims no share, and does not say that none was looked at."""
    problem = Case(lambda: wide_mlp(60), ("0.weight", "2.weight", "4.weight")).problem()
    for options in ({"num_checked": 0}, {"num_promising": 1, "num_checked": 1, "layer_products": 1}):
        summary = found_on(problem, **options).quantities["max_quadratic_form"]
        assert max(row["exceed_at_most"] for row in summary["layers"].values()) > 0.9
        assert "confidence" not in summary["note"] or "at most 9" in summary["note"]
        assert "looked at" not in summary["note"]


def test_the_order_of_the_samples_does_not_matter():
    model, inputs, targets = wide_mlp(40)
    init = {name: p.detach() * 0.8 for name, p in model.named_parameters()}
    order = torch.randperm(40)
    first, other = (
        found_on(genbound.Problem(model, init, data, dtype=torch.float64), num_promising=40)
        .quantities["max_quadratic_form"]["layers"]
        for data in ((inputs, targets), (inputs[order], targets[order]))
    )  # fmt: skip
    for name, row in first.items():
        assert np.allclose([row["lower"], row["upper"]], [other[name]["lower"], other[name]["upper"]], rtol=0.011)


def test_what_is_found_falls_short_of_what_is_certified_by_its_lower_side():
    certified = {"a": {"value": 2.02, "lower": 2.0, "sample": 1, "num_products": 90},
                 "b": {"value": 1.0, "lower": 1.0, "sample": 2, "num_products": 10},
                 "still": {"value": 0.0}}  # fmt: skip
    found = {"a": {"lower": 1.5, "sample": 1, "num_products": 8, "note": "not closed"},
             "b": {"lower": 1.0, "sample": 3, "num_products": 2}, "still": {}}  # fmt: skip
    compared = shortfall(certified, found)
    assert compared.names == ["a", "b"] and compared.short.tolist() == [0.25, 0.0] and compared.cost == 0.1
    assert compared.same.tolist() == [True, False] and compared.open.tolist() == [True, False]


def test_options_that_are_refused(problems):
    for options, words in (
        ({"maximum": "seen"}, "maximum 'seen' is unknown"),
        ({"maximum": "found", "convention": "paper-code"}, "theorem's convention"),
        ({"num_promising": 0}, "num_promising"),
        ({"num_checked": -1}, "num_checked"),
    ):
        with pytest.raises(GenboundError, match=words):
            genbound.measure(problems("mlp_gelu"), "max_quadratic_form", **options)
