"""Traces and noise of all training samples from some that were chosen by size."""

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import genbound
from benchmarks import population
from benchmarks.population import SIGMAS, N, Text, coverage, error_of, train
from genbound.errors import GenboundError
from genbound.estimators.choice import choose_by_size
from genbound.estimators.spread_by_size import Spreads
from genbound.formatting import digits, with_error
from genbound.quantities.noise_to_error import _expected_variance, _Plan

OTHERS = (
    "losses", "margin", "input_norm", "hessian_trace", "max_quadratic_form", "max_positive_trace", "fisher_rao_norm",
    "relative_flatness",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    """``trained(kind)``: a network of that kind, its start, inputs and labels; kept."""
    return cache(train)


def problem_of(trained, kind, num=None, seed=0):
    return population.problem_of(trained(kind), num, seed)


def measured(problem, *names, seed=0, sigmas=SIGMAS, **options):
    given = {"hessian_trace": options} if options else {}
    if "noise_stability" in names:
        given["noise_stability"] = {"sigmas": sigmas}
    return genbound.evaluate(problem, names, seed, options=given)


def test_where_all_samples_are_measured_nothing_is_chosen(trained):
    names, problem = ("hessian_trace", "noise_stability"), problem_of(trained, "image")
    chosen, alike = measured(problem, *names), measured(problem, *names, choice="uniform")
    assert chosen.quantities == alike.quantities
    assert "choice" not in chosen.quantities["hessian_trace"]


def test_what_is_no_mean_stays_with_the_samples_that_were_drawn_alike(trained):
    names, problem = OTHERS, problem_of(trained, "text", 24)
    chosen, alike = measured(problem, *names), measured(problem, *names, choice="uniform")
    changed = {name for name in chosen.quantities if chosen.quantities[name] != alike.quantities[name]}
    assert "hessian_trace" in changed and changed <= {"hessian_trace", "max_positive_trace"}
    one, other = (r.quantities["max_positive_trace"]["layers"] for r in (chosen, alike))
    assert all(one[name]["value"] == pytest.approx(other[name]["value"]) for name in one if one[name]["exact"])


def test_noise_and_trace_have_the_same_samples_and_say_so(trained):
    results = measured(problem_of(trained, "text", 40), "hessian_trace", "noise_stability")
    trace, noise = results.quantities["hessian_trace"], results.quantities["noise_stability"]
    assert trace["choice"] == noise["choice"] == "size" and trace["samples_sha256"] == noise["samples_sha256"]
    assert trace["samples_sha256"] != results.config["samples_sha256"]
    assert "from 40 that were chosen by the size of their loss's gradient" in results.to_markdown()
    assert (
        "chosen by the size"
        not in measured(problem_of(trained, "text", 40), "hessian_trace", choice="uniform").to_markdown()
    )


def test_the_table_of_samples_has_those_of_either_choice(trained):
    results = measured(problem_of(trained, "text", 40), "hessian_trace", "max_quadratic_form")
    table, layers = results.samples, len(results.layer_rows)
    trace = table.dropna(subset="hessian_trace")
    assert len(trace) == len(table.dropna(subset="max_quadratic_form_upper")) == 40 * layers
    assert 40 * layers < len(table) <= 80 * layers and not table["label"].isna().any()
    totals = trace.groupby("sample")["hessian_trace"].sum()
    weights = trace.groupby("sample")["hessian_trace_weight"].first()
    assert (totals * weights).mean() == pytest.approx(results.quantities["hessian_trace"]["total"]["value"])
    assert set(results.plots()) >= {"samples"} and results.plot("samples") is not None


def test_few_samples_and_noise_of_blocks_are_drawn_alike(trained):
    assert "choice" not in measured(problem_of(trained, "text", 6), "hessian_trace").quantities["hessian_trace"]
    stream = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3))
    net.append(nn.Linear(3, 4)).append(net[0]).append(nn.Linear(4, 3))  # the first weight is used twice
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    data = torch.randn(40, 4, generator=stream), torch.arange(40) % 3
    problem = genbound.Problem(net, init, data, num_samples=20)
    results = measured(problem, "hessian_trace", "noise_stability", sigmas=(0.1,))
    assert "choice" not in results.quantities["hessian_trace"]
    assert results.quantities["noise_stability"]["noise"] == "per block of 16 samples"


def test_draws_stop_at_a_quarter_of_what_the_choice_leaves(trained, monkeypatch):
    exact = {"exact_products": 1, "total_sem": 0.005, "layer_sem": 0.03}  # which would take many draws
    found = measured(problem_of(trained, "text", 60), "hessian_trace", **exact).quantities["hessian_trace"]
    assert 0.05 * found["total"]["data_sem"] < found["total"]["sem"] < 0.35 * found["total"]["data_sem"]
    monkeypatch.setattr("genbound.quantities.remainder_probes.ERROR_SHARE", 0.0)
    more = measured(problem_of(trained, "text", 60), "hessian_trace", **exact).quantities["hessian_trace"]
    assert found["num_probes"] < 0.5 * more["num_probes"] and found["total"]["sem"] > 1.5 * more["total"]["sem"]


@pytest.mark.parametrize("error", [0.1, 0.03])
def test_an_error_is_asked_for(trained, error):
    found = measured(problem_of(trained, "text", 20), "hessian_trace", "noise_stability", error=error, exact_products=1)
    total = found.quantities["hessian_trace"]["total"]
    assert error_of(total) <= 1.1 * error * total["value"]
    assert 20 < total["num_samples"] < N
    assert found.quantities["noise_stability"]["sigmas"][0]["num_samples"] == total["num_samples"]
    assert found.config["num_samples"] == 20


def test_an_error_is_asked_for_where_all_samples_are_given(trained):
    """Sizes are known of all samples, whatever is measured."""
    found = measured(problem_of(trained, "text"), "hessian_trace", error=0.1, exact_products=1)
    total = found.quantities["hessian_trace"]["total"]
    exact = measured(problem_of(trained, "text"), "hessian_trace", exact_products=10**9).quantities["hessian_trace"]
    assert total["num_samples"] < N / 2
    assert abs(total["value"] - exact["total"]["value"]) < 3 * error_of(total) < 0.32 * total["value"]


def test_samples_of_several_rounds_stand_in_the_table_once(trained):
    """A hard sample is in every round; its row has the mean of its values, and their weights together."""
    found = measured(problem_of(trained, "image", 20), "hessian_trace", error=0.015, exact_products=1)
    summary, table = found.quantities["hessian_trace"], found.samples.dropna(subset="hessian_trace")
    assert not table.duplicated(["sample", "layer"]).any()
    each = table.groupby("sample").agg(
        {"hessian_trace": "sum", "hessian_trace_weight": "first", "hessian_trace_num_probes": "first"}
    )
    assert len(each) == summary["total"]["num_samples"]
    assert summary["num_probes"] == each["hessian_trace_num_probes"].sum() > 2 * len(each)
    assert (each["hessian_trace"] * each["hessian_trace_weight"]).mean() == pytest.approx(summary["total"]["value"])
    assert each["hessian_trace_weight"].mean() == pytest.approx(1)


def test_rounds_have_samples_and_draws_of_their_own(trained):
    from genbound.estimators.measured import Measured
    from genbound.quantities.chosen_samples import Round, chosen_problem

    problem = problem_of(trained, "text", 20)
    sizes = Measured({}, {}, {"size": np.linspace(1, 2, N)})
    one, two = (set(chosen_problem(problem, sizes, 60, step).indices) for step in (0, 1))
    assert len(one & two) < 30
    context = type("Context", (), {"seed": 3, "measured": {}, "confusion": None, "options": None})()
    seeds = [Round(context, step, name=name).seed for step in range(3) for name in ("again", "trace")]
    assert len(set(seeds)) == 5 and seeds[0] == 3  # the first round is the measurement itself


def test_where_draws_spread_more_than_samples_each_gets_more_of_them(trained, monkeypatch):
    """And two where a draw costs as much as a sample."""
    from genbound.quantities import trace_to_error

    prices = {16: lambda problem, options, num: 1000.0 + num, 2: lambda problem, options, num: 0.001 + num}
    for most, price in prices.items():
        monkeypatch.setattr(trace_to_error, "cost_of", price)
        found = measured(problem_of(trained, "text", 20), "hessian_trace", error=0.05, exact_products=1)
        probes = found.samples.dropna(subset="hessian_trace")["hessian_trace_num_probes"]
        assert most in set(probes) and probes.min() >= 2


def test_the_noise_has_more_samples_than_the_trace_where_its_error_takes_more(trained):
    """The trace is measured on those that were given; later rounds have one of their own."""
    options = {"noise_stability": {"error": 0.08, "sigmas": (0.01,)}}
    found = genbound.evaluate(problem_of(trained, "text", 20), ["noise_stability"], options=options)
    (row,), total = found.quantities["noise_stability"]["sigmas"], found.quantities["hessian_trace"]["total"]
    assert total["num_samples"] == 20 < row["num_samples"]
    assert error_of(row) <= 1.25 * 0.08 * row["value"]
    options = {"noise_stability": {"sigmas": (0.01,)}}
    whole = genbound.evaluate(problem_of(trained, "text"), ["noise_stability"], options=options)
    (exact,) = whole.quantities["noise_stability"]["sigmas"]
    assert abs(row["value"] - exact["value"]) < 3.5 * math.hypot(error_of(row), exact["sem"])


def test_every_sigma_ends_at_its_own_error(trained):
    """The hardest has more samples than the others, and none is known much better than was asked for."""
    options = {"noise_stability": {"error": 0.07, "sigmas": (0.01, 0.03, 0.1, 0.3)}}
    found = genbound.evaluate(problem_of(trained, "text", 20), ["noise_stability"], options=options)
    rows = found.quantities["noise_stability"]["sigmas"]
    errors = [error_of(row) / row["value"] for row in rows]
    assert max(errors) <= 1.05 * 0.07 and min(errors) >= 0.5 * 0.07
    assert max(row["num_samples"] for row in rows) > 1.2 * min(row["num_samples"] for row in rows)
    assert found.quantities["noise_stability"]["choice"] == "size"
    assert "Both are compared on the 20 samples whose trace is known" in found.to_markdown()


def test_the_variance_that_is_expected_of_a_round_is_that_over_choices_and_draws():
    source = np.random.default_rng(0)
    sizes, num = np.sort(source.exponential(size=300)), 40
    spreads = Spreads(between=sizes**2, draw=2 * sizes**2 + 0.1)
    means, expected = [], []
    for _ in range(1500):
        values = np.sqrt(spreads.between) * source.normal(size=300)
        choice = choose_by_size(sizes, num, source.random(300), spreads.of(1))
        drawn = values[choice.members] + np.sqrt(spreads.draw[choice.members]) * source.normal(size=num)
        means.append((choice.shares * drawn).mean() - values.mean())
        part = SimpleNamespace(
            problem=SimpleNamespace(choice=choice, indices=choice.members),
            rises=SimpleNamespace(slope=0.0, draws=np.ones(num, int)),
        )
        expected.append(_expected_variance(part, spreads))
    assert np.var(means) == pytest.approx(np.mean(expected), rel=0.15)
    by_choice = _expected_variance(part, replace(spreads, draw=0 * sizes))
    part.rises.slope, part.sem = 1.0, 3.0  # a control: what its draws leave is what was stated
    assert _expected_variance(part, spreads) == pytest.approx(by_choice + 9)


def test_a_rise_of_zero_takes_all_samples():
    """No error is a share of nothing."""
    spreads = Spreads(between=np.ones(300), draw=np.ones(300))
    plan = _Plan.of(SimpleNamespace(spreads=spreads, error=0.1, expected=0.01), 0.0, 1)
    assert plan.num == 300


def test_an_error_that_takes_all_samples_measures_all(trained):
    found = measured(problem_of(trained, "text", 20), "hessian_trace", "noise_stability", error=0.001)
    total = found.quantities["hessian_trace"]["total"]
    assert total["num_samples"] == N and total["data_sem"] == 0
    whole = measured(problem_of(trained, "text"), "hessian_trace").quantities["hessian_trace"]["total"]
    assert abs(total["value"] - whole["value"]) < 4 * math.hypot(total["sem"], whole["sem"])


def test_all_samples_count_alike_after_some_were_chosen(trained):
    """Also where as many were measured in several rounds, some of them twice."""
    from genbound.estimators.choice import joined
    from genbound.estimators.measured import Measured
    from genbound.quantities.chosen_samples import chosen_problem, num_different, same_samples

    sizes = Measured({}, {}, {"size": np.linspace(1, 2, N)})
    rounds = [chosen_problem(problem_of(trained, "text", 20), sizes, N // 2, step).choice for step in range(2)]
    problem = problem_of(trained, "text", 20).measured_on(joined(rounds, [0.5, 0.5]))
    assert problem.num_samples == N > num_different(problem)
    for whole in (
        chosen_problem(problem, sizes, N),
        same_samples(problem, Measured({"total": {"num_samples": N}})),
    ):
        assert whole.num_samples == num_different(whole) == N and whole.choice is None
        assert (whole.shares == np.ones(N)).all()


def test_what_is_sampled_of_the_gauss_newton_part_counts_where_an_error_is_asked_for(trained):
    options = {"error": 0.05, "exact_products": 1, "exact_outputs": 0}
    found = measured(problem_of(trained, "text", 20), "hessian_trace", **options).quantities["hessian_trace"]["total"]
    assert error_of(found) <= 1.05 * 0.05 * found["value"] and found["num_samples"] < N


@pytest.mark.parametrize(
    ("options", "said"),
    [({"error": 1.5}, "no relative error"), ({"error": -0.1}, "no relative error"),
     ({"error": 0.1, "choice": "uniform"}, "leave choice uniform out"), ({"choice": "sizes"}, "did you mean")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(trained, options, said):
    with pytest.raises(GenboundError, match=said):
        measured(problem_of(trained, "text", 20), "hessian_trace", **options)


def test_a_check_of_another_checkpoint_counts_both_choices(trained):
    net, init, x, y = trained("text")
    baseline = measured(problem_of(trained, "text", 60), "hessian_trace")
    other = Text().double()
    other.load_state_dict({name: p * 1.01 for name, p in net.state_dict().items()})
    found = measured(genbound.Problem(other, init, (x, y), num_samples=60, batch_size=64), "hessian_trace")
    one, two = (r.quantities["hessian_trace"] for r in (baseline, found))
    assert (
        one["samples_sha256"] != two["samples_sha256"]
        and found.config["samples_sha256"] == baseline.config["samples_sha256"]
    )
    rows = [row for row in genbound.check(found, baseline).rows if row.measure == "hessian_trace"]
    assert rows and not any(row.failed for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("text", 1.0), ("image", 0.2)])
def test_stated_errors_cover_the_value_on_all_samples(trained, kind, least):
    errors, stated = coverage(trained(kind), 100, 60)
    covered = (np.abs(errors) <= 2 * stated).mean(0)
    assert covered.min() >= 0.93
    assert abs(errors[:, 0].mean()) < 4 * errors[:, 0].std() / 10
    alike, _ = coverage(trained(kind), 100, 60, choice="uniform")
    assert errors[:, 0].std() < least * alike[:, 0].std()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "image"])
def test_stated_errors_of_noise_cover(trained, kind):
    errors, stated = coverage(trained(kind), 100, 60, noise=True)
    assert (np.abs(errors) <= 2 * stated).mean(0).min() >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "error"), [("text", 0.1), ("text", 0.03), ("image", 0.02)])
def test_stated_errors_cover_where_an_error_is_asked_for(trained, kind, error):
    """Although rounds end where the stated error came out small."""
    errors, stated = coverage(trained(kind), 200, 20, error=error)
    covered = (np.abs(errors) <= 2 * stated).mean(0)
    assert covered[0] >= 0.93 and covered.min() >= 0.92 and np.median(stated[:, 0]) <= 1.05 * error
    assert abs(errors[:, 0].mean()) < 0.5 * errors[:, 0].std()


@pytest.mark.slow
def test_stated_errors_of_noise_cover_where_an_error_is_asked_for(trained):
    errors, stated = coverage(trained("text"), 100, 20, noise=True, error=0.1)
    assert (np.abs(errors) <= 2 * stated).mean(0).min() >= 0.93


def test_the_table_of_noise_has_the_errors_of_draws_and_of_choice(trained):
    found = measured(problem_of(trained, "text", 40), "noise_stability", sigmas=(0.03,))
    row = found.quantities["noise_stability"]["sigmas"][0]
    text = found.to_markdown()
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if "| noise stability" in line)
    head, line = lines[at], lines[at + 2]
    cells = dict(zip(*([cell.strip() for cell in cells.split("|")[1:-1]] for cells in (head, line)), strict=True))
    assert cells["noise stability (± sem over the draws)"] == with_error(row["value"], row["sem"])
    assert cells["± from the choice of samples"] == digits(row["data_sem"])
    whole = measured(problem_of(trained, "text"), "noise_stability", sigmas=(0.03,)).to_markdown()
    assert "noise stability (± sem over the draws)" in whole and "choice of samples" not in whole


def test_stated_errors_cover_over_a_few_seeds(trained):
    exact = measured(problem_of(trained, "image"), "hessian_trace", exact_products=10**9)
    value = exact.quantities["hessian_trace"]["total"]["value"]
    totals = [
        measured(problem_of(trained, "image", 40, seed), "hessian_trace", seed=seed).quantities["hessian_trace"][
            "total"
        ]
        for seed in range(8)
    ]
    assert all(abs(row["value"] - value) <= 3 * error_of(row) for row in totals)
    assert 0.3 < np.mean([abs(row["value"] - value) / error_of(row) for row in totals]) < 1.5
