"""The forecast of time: units of work that are timed, and what each quantity takes of them."""

from types import SimpleNamespace

import pytest

from benchmarks.counts import small_problem
from genbound.evaluation import forecast as forecasts
from genbound.evaluation.forecast import expected_gradients, forecast
from genbound.evaluation.selection import get_options
from genbound.evaluation.unit_costs import NOMINAL, factors, unit_seconds
from genbound.quantities import QUANTITIES
from genbound.quantities.chosen_samples import usual_samples


def test_every_unit_is_timed_that_the_network_has(problems):
    assert set(unit_seconds(problems("mlp_gelu"))) == set(NOMINAL)
    assert set(unit_seconds(problems("mlp_relu"))) == set(NOMINAL) - {"product"}
    assert set(unit_seconds(problems("twice"))) == set(NOMINAL)  # noise is added to the weights
    assert all(seconds > 0 for seconds in unit_seconds(problems("mlp_gelu")).values())


def test_every_quantity_has_a_unit_that_is_timed():
    assert {quantity.unit for quantity in QUANTITIES.values()} <= set(NOMINAL)


def test_units_that_take_as_long_as_they_count_change_nothing():
    assert set(factors(NOMINAL).values()) == {1.0}
    assert factors({**NOMINAL, "noise": 2.0})["noise"] == pytest.approx(3)
    assert factors({"gradient": 0.5})["product"] == 1


def test_seconds_are_those_of_the_units(problems, monkeypatch):
    problem = problems("mlp_gelu")
    monkeypatch.setattr(
        forecasts, "unit_seconds", lambda problem: {name: 2.0 * n for name, n in NOMINAL.items()} | {"noise": 40.0}
    )
    found = forecast(problem, ["losses", "noise_stability", "sharpness"], {})
    counts = {name: expected_gradients(problem, name, get_options(name, {})) for name in found.seconds_of}
    seconds = 2.0 * problem.num_samples
    assert found.seconds_per_gradient == pytest.approx(seconds)
    assert found.seconds_of["losses"] == pytest.approx(counts["losses"] * seconds)
    assert found.seconds_of["noise_stability"] == pytest.approx(counts["noise_stability"] * seconds * 30)
    assert found.seconds == pytest.approx(sum(found.seconds_of.values()))


def test_what_takes_time_whatever_the_samples_is_forecast_by_readings_of_the_weights(problems, monkeypatch):
    seconds = []
    for reading in (0.0, 0.5):
        monkeypatch.setattr(forecasts, "reading_seconds", lambda problem, seconds=reading: seconds)
        monkeypatch.setattr(forecasts, "unit_seconds", lambda problem: NOMINAL)
        seconds.append(forecast(problems("mlp_gelu"), ["quantized_error", "input_norm"], {}).seconds_of)
    extra = {name: seconds[1][name] - seconds[0][name] for name in seconds[0]}
    assert extra["quantized_error"] == pytest.approx(0.5 * QUANTITIES["quantized_error"].readings)
    assert extra["input_norm"] == 0


@pytest.mark.parametrize("name", ["matrix_norms", "power_law", "spectral_norm"])
def test_decompositions_take_the_same_for_any_samples(problems, name):
    found = [expected_gradients(problems("mlp_gelu", num_samples=n), name, get_options(name, {})) * n for n in (2, 7)]
    assert found[0] == pytest.approx(found[1]) and found[0] > 0


def test_the_trace_of_chosen_samples_is_expected_to_take_few_probes(problems):
    whole = problems("mlp_gelu", num_data=10**9)
    options = get_options("hessian_trace", {})
    most, usual = (
        f(whole, options) for f in (QUANTITIES["hessian_trace"].gradients, QUANTITIES["hessian_trace"].usual)
    )
    assert usual < most


def test_what_an_error_takes_goes_by_a_typical_number_of_samples():
    problem = small_problem()
    for name in ("hessian_trace", "noise_stability"):
        none, large, small = (get_options(name, {"error": error}) for error in (0.0, 0.5, 0.05))
        quantity = QUANTITIES[name]
        assert quantity.unforeseen(problem, none) == ""
        assert "the forecast has 60 of 60" in quantity.unforeseen(problem, small)
        assert quantity.usual(problem, large) <= quantity.usual(problem, small)
    many = SimpleNamespace(data=range(10**6))
    assert usual_samples(many, 0.1) == pytest.approx(100, rel=0.01)
    assert usual_samples(many, 0.5) == 64 and usual_samples(SimpleNamespace(data=range(9)), 0.1) == 9


def test_half_of_the_certified_refinement_is_forecast(problems):
    problem, quantity = problems("mlp_gelu"), QUANTITIES["max_quadratic_form"]
    certified, found = (get_options("max_quadratic_form", {"maximum": kind}) for kind in ("certified", "found"))
    assert quantity.usual(problem, certified) < quantity.gradients(problem, certified)
    assert "half of what it took" in quantity.unforeseen(problem, certified)
    assert quantity.unforeseen(problem, found) == ""
    assert quantity.unforeseen(problems("mlp_relu"), certified) == ""
