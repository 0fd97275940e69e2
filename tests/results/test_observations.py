"""Every number of a run with its error: bounds inherit theirs, and runs stored long ago are read as ever."""

import math
from pathlib import Path

import pytest
from handmade import bound, run

from genbound.results.comparison import compare
from genbound.results.export import tidy
from genbound.results.observations import observe
from genbound.results.regression import check
from genbound.results.results import load_results

STUDY = Path(__file__).parents[2] / "examples" / "study" / "results" / "pilot"
# Stored run -> its numbers, as they were counted before quantities said themselves how they are read.
STORED = {
    "cifar10/bounds-plain-seed0": 2652, "cifar10/stability-plain-seed0": 57, "sst2/bounds-plain-seed0": 1582,
    "sst2/stability-plain-seed0": 45,
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_runs_stored_long_ago(name):
    results = load_results(STUDY / name)
    assert len(observe(results)) == STORED[name]
    assert check(results, results).passed and "numbers agree" in check(results, results).to_markdown()
    assert len(tidy([results])) >= STORED[name] - 1 and "training samples measured" in results.to_markdown()
    assert compare([results, results]).to_markdown()


def test_every_stored_run_is_read():
    assert {str(file.parent.relative_to(STUDY)) for file in STUDY.rglob("results.json")} == set(STORED)


def test_an_interval_of_two_standard_errors_is_an_error():
    """2 +- 0.4 at two standard errors to either side: 0.2, of 2 a tenth, in decades 0.1 / ln 10."""
    o = observe(run({"trace_distance": bound(2.0, 1.6, 2.4)}))["trace_distance"]
    assert o.sem == pytest.approx(0.1 / math.log(10)) and o.lower is None and o.logarithm and o.is_bound


def test_a_certain_interval_stays_one():
    o = observe(run({"hessian_distance": bound(2.0, 1.0, 2.0)}))["hessian_distance"]
    assert (o.sem, o.lower, o.upper) == (0.0, 0.0, pytest.approx(math.log10(2)))


def test_a_bound_shares_the_error_of_what_was_searched():
    results = run({"jiang2020_flatness": bound(2.0)})
    results.quantities["flatness"] = {"sigma": 0.5, "sem_error": 0.01, "displacement": 0.1}
    found = observe(results)
    relative = found["flatness:sigma"].sem / 0.5
    assert relative == pytest.approx(math.hypot(0.1, 0.05))
    assert found["jiang2020_flatness"].sem == pytest.approx(relative / math.log(10))


def test_whether_samples_and_draws_decide():
    results = run({"distance_frobenius": bound(2.0), "hessian_distance": bound(1.0), "trace_distance": bound(1.0)})
    rows = {"a.weight": {"value": 3.0, "sem": 0.1, "exact": False}}
    results.quantities["max_positive_trace"] = {"layers": rows}
    found = observe(results)
    assert found["distance_frobenius"].data_sem == 0.0 and found["hessian_distance"].data_sem is None
    assert found["trace_distance"].extreme and found["max_positive_trace:a.weight"].extreme
    rows["a.weight"]["exact"] = True
    assert not observe(results)["trace_distance"].extreme


def test_a_bound_and_a_quantity_of_another_version():
    results = run({"nobody2024": bound(2.0, 1.0, 3.0)})
    results.quantities["mystery"] = {"layers": {"a.weight": {"value": 1.0, "sem": 0.1}}, "num_rounds": 3}
    found = observe(results)
    assert found["mystery:a.weight"].sem == 0.1 and found["nobody2024"].data_sem is None
    assert found["nobody2024"].lower == 0.0 and not found["nobody2024"].extreme
    assert check(results, results).passed and results.to_markdown()
