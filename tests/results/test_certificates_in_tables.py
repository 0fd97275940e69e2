"""What tables and checks make of certificates: guarantees, and no measures."""

import dataclasses
import math

import pytest
from handmade import bound, run

from genbound.bounds.certificates import drawn, pac_bayes_kl
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


def of_noise(error, kl, tau, num=90, **config):
    """A run with the certificate of what was drawn: 20 trials of each of ``num`` samples."""
    found = {"error": error, "error_sem": 0.01, "exact": False, "loss": None, "num_trials": 20 * num, "num_data": num,
             "num_pilot": num, "kl": kl, "log_union": 5.0, "tau": tau}  # fmt: skip
    value = pac_bayes_kl(error, 20 * num, kl + 5.0, num, 0.05)
    results = certified(value, samples_sha256="x", **config)
    results.quantities["gibbs_error"] = found
    results.bounds["pac_bayes_certificate"]["forms"]["network"] = {"log10": math.log10(value) + tau / 1000}
    return results


def test_another_seed_may_choose_other_noise():
    """More error for less divergence: the certificate weighs them, and errs as its trials and its pilot do."""
    less, more = of_noise(0.42, 57.0, 2.0), of_noise(0.58, 10.0, 100.0, seed=1)
    found = check(more, less)
    assert found.passed and check(less, more).passed
    skipped = {row.measure + row.where for row in found.rows if "chooses among other draws" in row.note}
    assert skipped == {"gibbs_errorerror", "pac_bayes_certificatenetwork"}
    assert not check(of_noise(0.58, 10.0, 100.0), less).passed
    worse = of_noise(0.3, 400.0, 1.0, num=2000, seed=1)
    assert not check(worse, of_noise(0.2, 400.0, 1.0, num=2000)).passed


def test_the_error_of_a_drawn_certificate():
    """2000 trials of half: 1/2 / sqrt 2000, times the slope; the pilot's 500 err twice as far, to either side."""
    found = of_noise(0.5, 300.0, 1.0, num=2000).quantities["gibbs_error"] | {"num_trials": 2000, "num_pilot": 500}
    sem, choice = drawn(found, 0.05)
    up, down = (pac_bayes_kl(0.5 + s * 1e-4, 2000, 305.0, 2000, 0.05) for s in (1, -1))
    assert sem == pytest.approx((up - down) / 2e-4 * 0.5 / 2000**0.5, rel=0.05)
    assert choice == pytest.approx(4 * sem, rel=0.05)
    assert drawn(found | {"exact": True}, 0.05) == (0.0, 0.0)


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
