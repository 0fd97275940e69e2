"""What tables and checks make of certificates: guarantees, and no measures."""

import dataclasses
import math

import pytest
from handmade import bound, run

from genbound.bounds.clopper1934heldout import held_out_limit
from genbound.formatting import rounded_up, value_text
from genbound.results.comparison import compare
from genbound.results.regression import check


def certified(value, **config):
    return run({"pac_bayes_certificate": bound(value, unit="error") | {"kind": "certificate"}}, **config)


def status(results, baseline, **options):
    found = check(results, baseline, **options)
    return {row.measure: row.status for row in found.rows}["pac_bayes_certificate"], found.passed


def test_one_that_grew_fails_and_one_that_fell_is_better():
    assert status(certified(0.32), certified(0.30)) == ("regression", False)
    assert status(certified(0.28), certified(0.30)) == ("improved", True)
    assert status(certified(0.30), certified(0.30)) == ("ok", True)


def test_a_tolerance_is_about_growth_unless_it_says_decline():
    assert status(certified(0.32), certified(0.30), tolerances={"*certificate": 0.05}) == ("ok", True)
    assert status(certified(0.36), certified(0.30), tolerances={"*certificate": 0.05}) == ("regression", False)
    assert status(certified(0.20), certified(0.30), tolerances={"*certificate": 0.05}) == ("improved", True)
    assert status(certified(0.20), certified(0.30), tolerances={"*certificate": "-0.05"}) == ("regression", False)


def test_another_seed_moves_it_by_its_monte_carlo():
    assert status(certified(0.309, seed=1), certified(0.30)) == ("ok", True)
    assert status(certified(0.312, seed=1), certified(0.30)) == ("regression", False)


@pytest.mark.parametrize("value", [0.30900001, 0.3094, 0.9991, 0.0405001, 1.0, 0.31])
def test_a_guarantee_is_never_shown_below_its_value(value):
    assert float(rounded_up(value)) >= value
    assert float(rounded_up(value)) - value <= 10.0 ** (math.floor(math.log10(value)) - 2)
    row = bound(value, unit="error") | {"kind": "certificate"}
    assert value_text(row) == f"≤ {rounded_up(value)}"


def on_test_set(wrong, name, digest="t" * 64):
    results = run({"test_set_bound": bound(0.1, unit="error") | {"kind": "certificate"}}, name=name)
    losses = results.quantities["losses"] | {"test_error": wrong / 500, "num_test_wrong": wrong}
    return dataclasses.replace(
        results, data=results.data | {"test_sha256": digest}, quantities=results.quantities | {"losses": losses}
    )


def test_the_best_on_one_test_set_is_paid_for():
    runs = [on_test_set(wrong, f"run{wrong}") for wrong in (40, 31, 55)]
    said = compare(runs).remarks()[-1]
    expected = held_out_limit(31 / 500, 31, 500, math.log(0.05 / 3))
    assert rounded_up(expected) in said and "500 test samples" in said and "delta / 3" in said and "run31" in said
    assert rounded_up(held_out_limit(31 / 500, 31, 500, math.log(0.05))) not in said


def test_other_test_sets_are_no_choice():
    (mixed,) = compare([on_test_set(40, "one"), on_test_set(31, "two", "u" * 64)], allow_mixed=True).remarks()
    assert mixed.startswith("Compared although not alike: test data (tttttttt in one")
    assert not compare([on_test_set(40, "one")]).remarks()
