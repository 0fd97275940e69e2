"""Certificates as arithmetic: every term by hand, and nothing where nothing is guaranteed."""

import math
import re

import numpy as np
import pytest

from genbound.bounds import BOUNDS, Evidence
from genbound.bounds.certificates import pac_bayes_kl
from genbound.bounds.clopper1934heldout import held_out_limit
from genbound.estimators.binomial_tail import binomial_upper
from genbound.estimators.kl_inverse import binary_kl, kl_inverse
from genbound.formatting import rounded_up

GIBBS = {
    "error": 0.2, "exact": False, "loss": None, "loss_range": None, "num_trials": 5000, "num_data": 1000, "kl": 30.0,
    "log_union": 2 * math.log(51), "num_groups": 2, "error_sem": 0.006,
}  # fmt: skip
LOSSES = {
    "train_error": 0.1,
    "constant_error": 0.5,
    "test_error": 0.15,
    "num_test": 200,
    "num_test_wrong": 30,
    "error_gap": 0.05,
}


def evidence(gibbs=(), losses=(), **changes):
    quantities = {"gibbs_error": GIBBS | dict(gibbs), "losses": LOSSES | dict(losses)}
    return Evidence(**{"num_data": 1000, "loss_range": 2.0, "quantities": quantities, "delta": 0.05, **changes})


def row(name="pac_bayes_certificate", **changes):
    return BOUNDS[name].evaluate(evidence(**changes))


def test_with_a_pencil():
    """kl(r, p) = (30 + 2 ln 51 + ln(2 sqrt(1000) / 0.045)) / 1000 with kl(0.2, r) = ln(1 / 0.005) / 5000."""
    p = row()["value"]
    r = kl_inverse(0.2, math.log(200) / 5000)
    assert binary_kl(0.2, r) == pytest.approx(5.298317 / 5000, rel=1e-6)
    assert binary_kl(r, p) == pytest.approx((30 + 7.863651 + math.log(63.245553 / 0.045)) / 1000, rel=1e-6)


def test_exact_spends_all_of_delta_on_the_bound():
    p = row(gibbs={"exact": True, "num_trials": 0})["value"]
    assert binary_kl(0.2, p) == pytest.approx((30 + 7.863651 + math.log(63.245553 / 0.05)) / 1000, rel=1e-6)
    assert p < row()["value"] and "delta = 0.05; Gibbs error 0.2, exact" in row(gibbs={"exact": True})["note"]


def test_every_term_makes_it_larger():
    base = row()["value"]
    for worse in ({"kl": 31.0}, {"log_union": 9.0}, {"num_trials": 1000}, {"error": 0.21}):
        assert row(gibbs=worse)["value"] > base
    assert row(delta=0.01)["value"] > base > row(delta=0.2)["value"]
    assert pac_bayes_kl(0.2, 5000, 40.0, 2000, 0.05) < pac_bayes_kl(0.2, 5000, 40.0, 1000, 0.05)


def test_it_is_a_certificate_of_the_whole_error():
    """Nothing is added before the verdict, and no gap stands beside it."""
    found = row()
    assert found["kind"] == "certificate" and found["bounds"] == "error"
    assert found["vacuous"] is False and row(gibbs={"kl": 400.0})["vacuous"] is True
    assert found["gap_ratio"] is None and found["below_gap"] is None
    for word in ("noisy network", "0.045 + 0.005", "of 5000 trials", "KL 30 + 7.86 nats", "independent", "did not see"):
        assert word in found["note"]


def test_a_loss_with_a_range_is_certified_as_a_form():
    """The loss over its range has the same certificate as an error of its size."""
    found = row(gibbs={"loss": 0.2, "loss_range": 4.6})
    assert found["forms"]["bounded_loss"]["log10"] == pytest.approx(math.log10(found["value"]), abs=1e-12)
    alone = row(gibbs={"loss": 0.2, "loss_range": 4.6, "error": None})
    assert alone["value"] is None and "bounded_loss" in alone["forms"] and "no 0-1 error" in alone["note"]


def test_nothing_where_nothing_is_guaranteed():
    assert "too many" in row(gibbs={"reason": "too many"})["note"]
    part = row(num_data=4000)
    assert part["value"] is None and "1000 samples and n is 4000" in part["note"]


def test_test_set_bound():
    """30 of 200 wrong: the Clopper-Pearson limit at 95 % is 0.19791."""
    found = row("test_set_bound")
    assert found["value"] == pytest.approx(0.19791, abs=1e-5)
    assert found["value"] == binomial_upper(30, 200, math.log(0.05))
    many = found["forms"]["best_of_1000"]["log10"]
    assert 10**many == pytest.approx(binomial_upper(30, 200, math.log(0.05 / 1000)), rel=1e-12)
    assert "error of the network itself" in found["note"]
    assert "need" in row("test_set_bound", losses={"num_test": 0})["note"]
    assert row("test_set_bound", losses={"test_error": None})["value"] is None


def test_how_many_test_samples_the_certificate_is_worth():
    from genbound.estimators.binomial_tail import trials_for

    certified = row()["value"]
    number = trials_for(certified, 0.15, math.log(0.05))
    assert f"; {number} test samples with this error would give" in row("test_set_bound")["note"]
    without = Evidence(num_data=1000, loss_range=2.0, quantities={"losses": LOSSES})
    assert "would give" not in BOUNDS["test_set_bound"].evaluate(without)["note"]


def test_of_flipped_labels_the_training_set_says_which_it_is_about():
    flipped = np.array([[0.8, 0.2], [0.2, 0.8]])
    about = "of labels that are flipped as those of the training samples are"
    assert row(confusion=flipped)["note"].endswith(about) and about not in row()["note"]
    assert "would give the training set's" in row("test_set_bound")["note"]
    assert "training set's" not in row("test_set_bound", confusion=flipped)["note"]  # another error


def test_errors_that_are_fractions_have_chernoff():
    """Two halves are no count of one: a mean that is a whole number of samples may be of fractions."""
    assert held_out_limit(0.2, None, 50, math.log(0.05)) == kl_inverse(0.2, math.log(20) / 50)
    assert held_out_limit(0.2, 10, 50, math.log(0.05)) == binomial_upper(10, 50, math.log(0.05))
    halves = row("test_set_bound", losses={"num_test_wrong": None})["value"]
    assert halves == kl_inverse(0.15, math.log(20) / 200) > row("test_set_bound")["value"]


def test_the_best_certificate_is_the_one_compared():
    quantized = {
        "error": 0.11, "right_or_wrong": True, "loss": None, "loss_range": None, "nats": 10.0, "num_data": 1000,
        "num_groups": 2,
    }  # fmt: skip
    given = evidence()
    given.quantities["quantized_error"] = quantized
    best = BOUNDS["compression_certificate"].evaluate(given)["value"]
    assert best < row()["value"]
    assert f"certificate of {rounded_up(best)}" in BOUNDS["test_set_bound"].evaluate(given)["note"]


@pytest.mark.parametrize("kl", [3.0, 10.0, 17.0, 30.0, 31.0, 44.0])
def test_what_a_note_guarantees_is_rounded_to_the_safe_side(kl):
    """The certificate within the yardstick's note, and both parts of the network's own, are never below the numbers."""
    certified = row(gibbs={"kl": kl})["value"]
    note = row("test_set_bound", gibbs={"kl": kl})["note"]
    assert certified <= float(note.rpartition("certificate of ")[2]) < certified + 1e-3
    given = {"kl": kl, "disagreement": 0.0371, "num_unlabelled": 777}
    form = row(gibbs=given)["forms"]["network"]
    value, apart = re.search(r"network: (\S+) and (\S+), at most", form["note"]).groups()
    assert 10 ** form["log10"] - 1e-12 <= float(value) + float(apart) < 10 ** form["log10"] + 2e-3
    assert float(apart) >= kl_inverse(0.0371, math.log(1 / 0.005) / 777)
