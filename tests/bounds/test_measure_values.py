"""Pencil values of the measures that are no bounds made of layer norms, on the net of ``test_comparison_values``."""

import math

import numpy as np
import pytest
from fixtures import NET, W1, W2, net, number

from genbound.bounds import arora2018compression as arora
from genbound.bounds import distance, fisher_rao, path_norm, petzka2021flatness, spectra, zhang2024noise
from genbound.bounds import gouk2021distance as gouk
from genbound.bounds import jiang2020fantastic as jiang
from genbound.bounds import li2021improved as li
from genbound.bounds import neyshabur2018pacbayes as neyshabur
from genbound.formatting import value_text


def test_arora():
    """c d max|f| sqrt(2 / (.5 * .25)^2 / 100) = 2 * 2 * 5 * 8 sqrt 2 / 10; parameters 25 * 4 * 2 * 64."""
    assert number(arora.ARORA2018) == pytest.approx(16 * math.sqrt(2), rel=1e-12)
    assert number(arora.ARORA2018, "effective_parameters") == pytest.approx(12800, rel=1e-12)
    row = arora.ARORA2018.evaluate(net())
    assert "compressed" in row["note"] and "smoothness" in row["note"]
    smooth = net(compression={"smoothness": 7.0, "zeta": 0.01})
    note = arora.ARORA2018.evaluate(smooth)["note"]
    assert "unverified" not in note and "0.01" in note


def test_arora_without_a_contraction_of_its_own():
    """The network's, 3, for layer 1: 25 * 64 * (9 + 4)."""
    given = net(compression={"contraction": 3.0})
    given.quantities["compression"]["layers"]["1"]["contraction"] = None
    assert number(arora.ARORA2018, "effective_parameters", given) == pytest.approx(25 * 64 * 13, rel=1e-12)


def test_arora_knows_the_errors_of_its_cushions():
    """Layer 1: 4 % of its cushion and 3 % of beta, 5 % of beta over it; layer 2 none: half of the sum each, 2.5 %."""
    given = net()
    given.quantities["compression"]["layers"]["1"] |= {"interlayer_cushion_sem": 0.01, "beta_sem": 0.03}
    row = arora.ARORA2018.evaluate(given)
    assert (row["lower"], row["upper"]) == pytest.approx((0.95 * row["value"], 1.05 * row["value"]), rel=1e-12)
    assert arora.ARORA2018.interval_sems == 2
    known = arora.ARORA2018.evaluate(net())
    assert known["lower"] == known["upper"] == known["value"]


def test_arora_needs_cushions():
    given = net()
    given.quantities["compression"]["layers"]["1"]["interlayer_cushion"] = 0.0
    row = arora.ARORA2018.evaluate(given)
    assert row["value"] is None and row["note"] == "the interlayer cushion of 1 is zero"


def test_jiang():
    """6 / .04 = 150, 38 / .04 = 950; ln(100 / .1) = 6.907755."""
    assert number(jiang.JIANG2020_FLATNESS) == pytest.approx(math.sqrt(1.5), rel=1e-12)
    assert number(jiang.JIANG2020_FLATNESS, "paper") == pytest.approx(1.291928, abs=1e-6)
    assert number(jiang.JIANG2020_FLATNESS, "origin") == pytest.approx(3.109514, abs=1e-6)
    assert number(jiang.JIANG2020_MAGNITUDE) == pytest.approx(math.sqrt(0.32142562), abs=1e-8)
    assert number(jiang.JIANG2020_MAGNITUDE, "derived") == pytest.approx(0.700359, abs=1e-6)


def test_jiang_magnitude_as_in_the_public_code():
    """The sums are given: (S / 4 + ln(n / sigma) + 10) / n with sigma of the noise that follows the weights, 0.2."""
    given = net(flatness={"magnitude_sigma_origin": 0.2, "log_sum_published": 40.0, "log_sum_published_origin": 80.0})
    forms = jiang.JIANG2020_MAGNITUDE.evaluate(given)["forms"]
    rest = math.log(100 / 0.2) + 10
    assert 10 ** forms["paper"]["log10"] == pytest.approx(math.sqrt((10 + rest) / 100), rel=1e-12)
    assert 10 ** forms["paper_origin"]["log10"] == pytest.approx(math.sqrt((20 + rest) / 100), rel=1e-12)
    assert "public code" in forms["paper"]["note"] and "public code" not in forms["derived"]["note"]
    older = jiang.JIANG2020_MAGNITUDE.evaluate(net(flatness={"log_sum_published": None}))
    assert older["value"] is not None and older["forms"]["paper"]["log10"] is None


def test_jiang_exact():
    """sigma = .1 is rounded down to 2^(-14/4), 1 / sigma^2 = 128: (6 * 64 + ln(20 / .05) + ln(15 * 16)) / 200."""
    expected = math.sqrt((384 + math.log(400) + math.log(240)) / 200)
    assert number(jiang.JIANG2020_FLATNESS, "exact") == pytest.approx(expected, rel=1e-12)
    on_grid = 10 ** jiang.exact(math.log10(6), 2**-0.5, 100, 0.05)
    assert on_grid == pytest.approx(math.sqrt((6 + math.log(400) + math.log(12)) / 200), rel=1e-12)


def test_jiang_sharpness():
    """alpha = .1, omega = 12: 6 ln 24 / .02 / 100 = 3 ln 24, the weights 38 ln 24 / 2; quoted: 1.5 ln 24."""
    assert number(jiang.JIANG2020_SHARPNESS) == pytest.approx(math.sqrt(9.534161), rel=1e-7)  # ln 24 = 3.1780538
    assert number(jiang.JIANG2020_SHARPNESS, "main_term_origin") == pytest.approx(math.sqrt(60.383023), rel=1e-7)
    assert number(jiang.JIANG2020_SHARPNESS, "quoted") == pytest.approx(math.sqrt(4.767081), rel=1e-7)


def test_jiang_sharpness_exact():
    """1 / alpha^2 is 128 on the grid: (6 * 128 ln 24 + ln 2 + ln(20 / .05) + ln(15 * 16)) / 200 = 2452.9105 / 200."""
    assert number(jiang.JIANG2020_SHARPNESS, "exact") == pytest.approx(math.sqrt(2452.9105 / 200), rel=1e-7)


def test_jiang_sharpness_of_magnitudes():
    """Boxes .1 |w| + .001 of |w| = 0, six 1, four 2 and a 4: squares 1e-6, .010201, .040401, .160801, in all .383612.

    The prior's variance times 2 ln 24 is .383612 / 12 + 6.3561077 * 6 / 12 = 3.2100215, whose logarithm is 1.1662777:
    12 of it and 13.8155106, 6 * 4.5852695, 4 * 3.2089007, 1.8275877, in all 69.9856500; the weights 3 * 38 / 6 for
    3 * 6 / 6.
    """
    assert number(jiang.JIANG2020_SHARPNESS_MAGNITUDE) == pytest.approx(math.sqrt(69.985650 / 400), rel=1e-7)
    top = math.log(0.383612 / 12 + 2 * math.log(24) * 38 / 12)
    expected = math.sqrt((12 * top + 69.985650 - 12 * 1.1662777) / 400)
    assert number(jiang.JIANG2020_SHARPNESS_MAGNITUDE, "main_term_origin") == pytest.approx(expected, rel=1e-7)


def test_jiang_sharpness_says_what_it_is():
    for bound in (jiang.JIANG2020_SHARPNESS, jiang.JIANG2020_SHARPNESS_MAGNITUDE):
        row = bound.evaluate(net())
        assert row["bounds"] == "error" and row["kind"] == "measure"
        assert row["vacuous"] is True  # 3.09 and 0.418, each with the 0.1 that the error may rise, against chance, 0.5
        assert "upper estimate" in row["note"] and "perturbed" in row["note"]
        assert row["forms"]["paper"]["log10"] is None and "could not be confirmed" in row["forms"]["paper"]["note"]
    assert "unverified" in jiang.JIANG2020_SHARPNESS.evaluate(net())["forms"]["quoted"]["note"]
    for key in ("alpha", "log_sum_init"):
        given = net(sharpness={key: None, f"{key}_reason": "no box is small enough"})
        bound = jiang.JIANG2020_SHARPNESS if key == "alpha" else jiang.JIANG2020_SHARPNESS_MAGNITUDE
        row = bound.evaluate(given)
        assert row["value"] is None and row["note"].endswith(": no box is small enough")


def test_jiang_sharpness_is_at_least_its_value():
    """A worse perturbation may exist: certain is the value at the upper end of the search, 10 % above."""
    for bound, ratio in ((jiang.JIANG2020_SHARPNESS, 1.1), (jiang.JIANG2020_SHARPNESS_MAGNITUDE, 2.0)):
        given = net()
        given.quantities["sharpness"]["log_sum_init_above"] = given.quantities["sharpness"]["log_sum_init"] / 4
        row = bound.evaluate(given)
        assert row["at_least"] and row["upper"] is None and row["lower"] == pytest.approx(row["value"] / ratio)
        assert value_text(row).startswith("≥ ") and "of" not in value_text(row)
        some = net()
        some.quantities["sharpness"]["num_samples"] = 64
        assert value_text(bound.evaluate(some)).endswith("(64 of 100)")


def test_noise_stays_in_the_box_half_of_the_time():
    """The factor ln(2 omega): P(max |u_i| <= alpha) >= 1/2, and a narrower box would not do for many."""
    for size in (1, 12, 10**4, 10**8):
        deviations = math.sqrt(2 * math.log(2 * size))
        stays = math.exp(size * math.log1p(-math.erfc(deviations / math.sqrt(2))))
        assert stays >= 0.5
    assert stays < 0.95 and math.exp(size * math.log1p(-math.erfc(0.9 * deviations / math.sqrt(2)))) < 0.5


def test_jiang_gives_the_reason_of_the_search():
    given = net(flatness={"log_sum_init": None, "magnitude_sigma": None, "magnitude_reason": "too much noise"})
    row = jiang.JIANG2020_MAGNITUDE.evaluate(given)
    assert row["value"] is None and row["note"].endswith("found none: too much noise")


def test_path_and_fisher_rao():
    assert number(path_norm.PATH_NORM) == pytest.approx(math.sqrt(0.67), rel=1e-12)
    assert number(path_norm.PATH_NORM, "squared") == pytest.approx(67, rel=1e-12)
    squares = (W2**2) @ (W1**2) @ np.ones(2)
    assert list(squares) == [41, 26]
    assert number(fisher_rao.FISHER_RAO) == pytest.approx(0.3, rel=1e-12)
    assert number(fisher_rao.FISHER_RAO, "norm") == pytest.approx(3, rel=1e-12)


def test_distances():
    """Frobenius sqrt(2 + 4); spectral 1 + 2; MARS 1 + 2; rows 2 + 2."""
    for bound, expected, squares in (
        (distance.DISTANCE_FROBENIUS, math.sqrt(6), 6),
        (distance.DISTANCE_SPECTRAL, 3, 5),
        (distance.DISTANCE_MARS, 3, 5),
        (distance.DISTANCE_TWO_ONE, 4, 8),
        (distance.DISTANCE_SPECTRAL_MATRIX, 3, 5),
        (distance.DISTANCE_MARS_MATRIX, 3, 5),
        (distance.DISTANCE_TWO_ONE_MATRIX, 4, 8),
    ):
        assert number(bound) == pytest.approx(expected, rel=1e-12)
        assert number(bound, "sum_of_squares") == pytest.approx(squares, rel=1e-12)
        assert bound.evaluate(net())["vacuous"] is None


def test_spectra():
    """Squared Frobenius over spectral norm 11 / 8 and 27 / 18, mean 23 / 16; exponents 2 and 4, sems 0.3 and 0.4."""
    row = spectra.STABLE_RANK.evaluate(net())
    assert row["value"] == pytest.approx(23 / 16, rel=1e-12)
    assert number(spectra.STABLE_RANK, "sum") == pytest.approx(23 / 8, rel=1e-12)
    row = spectra.MARTIN2021_ALPHA.evaluate(net())
    assert (row["lower"], row["value"], row["upper"]) == pytest.approx((2.5, 3, 3.5), rel=1e-12)


def test_relative_flatness_of_the_last_layer():
    """Given as 0.4 with an error of 0.05: two of them to either side."""
    row = petzka2021flatness.PETZKA2021.evaluate(net())
    assert (row["lower"], row["value"], row["upper"]) == pytest.approx((0.3, 0.4, 0.5), rel=1e-12)
    assert row["note"] == "of the last layer, 2"


def test_zhang_2024():
    """Traces 2 and 3 with errors 0.5 and 0, |v|^2 = 2 and 4, n = 100: sqrt(5 * 6 / 100); sides 4 * 6 and 6 * 6."""
    traces = {"1": {"value": 2.0, "sem": 0.5}, "2": {"value": 3.0, "sem": 0.0}}
    row = zhang2024noise.ZHANG2024.evaluate(net(max_positive_trace={"layers": traces}))
    assert (row["lower"], row["value"], row["upper"]) == pytest.approx((0.24**0.5, 0.3**0.5, 0.6), rel=1e-12)
    assert row["kind"] == "measure" and row["bounds"] == "loss"


def test_names():
    assert list(NET) == ["1", "2"]


def test_fisher_rao_without_homogeneity():
    row = fisher_rao.FISHER_RAO.evaluate(net(fisher_rao_norm={"parametric": 5.0, "identity_holds": False}))
    assert row["value"] == pytest.approx(0.3) and "homogeneity" in row["note"]
    assert 10 ** row["forms"]["parametric"]["log10"] == pytest.approx(5)


def test_steps_that_do_not_keep_zero():
    given = net(structure={"zero_preserving": False})
    for bound, form in ((neyshabur.NEYSHABUR2018, "init_rigorous"), (li.LI2021, "tight"), (gouk.GOUK2021, "paper")):
        found = bound.evaluate(given)["forms"][form]
        assert found["log10"] is None and "keep zero" in found["note"]
