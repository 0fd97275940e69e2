"""How numbers are read off a stored summary, with what is known of their errors."""

import math

import pytest

from genbound.quantities import QUANTITIES
from genbound.quantities.summary import Number, Reading

ROW = {"value": 2.0, "sem": 0.1, "data_sem": 0.3, "num_samples": 8, "size": 5, "size_sem": 0.2, "kind": "linear"}


def numbers(summary, **facts):
    return {number.where: number for number in Reading(**facts).numbers(summary)}


def test_errors_stand_beside_their_numbers():
    found = numbers({"layers": {"a.weight": ROW}, "total": {"value": 4.0, "sem": 0.5}, "depth": 3, "note": "x"})
    assert found == {
        "a.weight": Number("a.weight", 2.0, 0.1, 0.3), "a.weight.size": Number("a.weight.size", 5.0, 0.2, None),
        "total": Number("total", 4.0, 0.5, None), "depth": Number("depth", 3.0, 0.0, None),
    }  # fmt: skip


def test_rows_of_a_grid_are_named_by_their_sigma():
    found = numbers({"sigmas": [{"sigma": 0.01, "value": 1.0, "sem": 0.1}, {"sigma": 0.5, "value": 2.0}]})
    assert list(found) == ["sigma=0.01", "sigma=0.5"] and found["sigma=0.01"].sem == 0.1


def test_an_interval_is_one_number():
    row = {"value": 2.0, "lower": 1.0, "upper": 2.0, "sample": 3}
    found = numbers({"layers": {"a": row, "b": {"lower": 1.0, "upper": None}, "c": {"init": row}}})
    assert found == {
        "a": Number("a", 2.0, 0.0, None, 1.0, 2.0), "c.init": Number("c.init", 2.0, 0.0, None, 1.0, 2.0),
    }  # fmt: skip
    assert numbers({"layers": {"a": row}}, fixed=True)["a"].data_sem == 0.0


def test_what_is_fixed_has_no_error():
    """The sem of a loss speaks of other data than these."""
    assert set(numbers({"layers": {"a": ROW}}, fixed=True).values()) == {Number("a", 2.0), Number("a.size", 5.0)}


def test_how_something_was_measured_is_left_out():
    summary = {"value": 1.0, "rounds": 3, "rounds_used": 2, "inner": {"rounds": 1, "value": 2.0}}
    assert set(numbers(summary, how=("rounds*",))) == {"", "inner"}


def test_extremes_but_for_exact_rows():
    rows = {"a": {"value": 1.0, "exact": False}, "b": {"value": 1.0, "exact": True}, "c": {"value": 1.0, "other": 2.0}}
    found = numbers({"layers": rows}, extremes=("value",))
    assert {where: number.extreme for where, number in found.items()} == {
        "a": True, "b": False, "c": True, "c.other": False,
    }  # fmt: skip
    reading = Reading(extremes=("value",))
    assert reading.takes_extremes({"layers": rows}) and not reading.takes_extremes({"layers": {"b": rows["b"]}})
    assert not Reading().takes_extremes({"layers": rows})


def test_a_reading_of_its_own():
    assert numbers({"x": 1.0}, observe=lambda summary: [Number("y", 2 * summary["x"])]) == {"y": Number("y", 2.0)}


def test_the_error_of_a_sigma_that_was_searched():
    """A rise of 0.1 known to 0.01 is a tenth of sigma; the search stopped at 5 %."""
    summary = {"sigma": 0.5, "sem_error": 0.01, "displacement": 0.1, "norm_weights": 3.0, "num_draws": 12}
    found = {n.where: n for n in QUANTITIES["flatness"].reading.numbers(summary)}
    assert found["sigma"].sem == pytest.approx(0.5 * math.hypot(0.1, 0.05)) and found["sigma"].data_sem is None
    assert found["norm_weights"] == Number("norm_weights", 3.0) and len(found) == 2
    (found, _) = QUANTITIES["flatness"].reading.numbers(summary | {"tolerance": 0.2})
    assert found.sem == pytest.approx(0.5 * math.hypot(0.1, 0.2))


def test_the_error_of_a_root():
    """Of a norm 4 whose square is known to 0.8: 0.8 / (2 * 4)."""
    summary = {"value": 4.0, "squared_sem": 0.8, "num_samples": 9, "parametric": 2.0}
    found = {n.where: n for n in QUANTITIES["fisher_rao_norm"].reading.numbers(summary)}
    assert found[""].data_sem == pytest.approx(0.1) and found["parametric"].data_sem is None


def test_the_bracket_of_a_search():
    summary = {"alpha": 0.5, "alpha_above": 0.55, "magnitude_alpha": None, "rise": 0.1}
    assert QUANTITIES["sharpness"].reading.numbers(summary) == [Number("alpha", 0.5, 0.0, None, 0.5, 0.55)]
