"""Pencil values on the net W1 = [[2,1],[0,1],[-2,1]], W2 = [[2,1,2],[1,-4,1]] (columns and rows orthogonal).

Norms: spectral sqrt 8, sqrt 18; displacement 1, 2; Frobenius squared 11, 27; displacement 2, 4; MARS 3, 6; displacement
1, 2; rows of the displacement 2, 2. Phi with the displacement: 2 * 18 + 4 * 8 = 68; with the weights:
11 * 18 + 27 * 8 = 414.
"""

import math

import numpy as np
import pytest
from fixtures import W1, W2, evidence, layer, net, norms, number, residual, series, spectral_norm

from genbound.bounds import bartlett2017spectral as bartlett
from genbound.bounds import distance
from genbound.bounds import gouk2021distance as gouk
from genbound.bounds import li2021improved as li
from genbound.bounds import long2020sharp as long
from genbound.bounds import neyshabur2018pacbayes as neyshabur
from genbound.bounds import pitas2017pacbayes as pitas


def test_fixture():
    assert (spectral_norm(W1), spectral_norm(W2)) == pytest.approx((math.sqrt(8), math.sqrt(18)))
    assert (norms(W1)["mars"], norms(W2)["mars"]) == (3, 6)
    assert (norms(W1)["two_one"], norms(W2)["two_one"]) == pytest.approx((2 * math.sqrt(5) + 1, 3 + math.sqrt(18)))


# -- Neyshabur, Bhojanapalli & Srebro -----------------------------------------------------------------------------


def test_neyshabur():
    """h ln(dh) = 3 ln 6; d^2 = 4: sqrt(12 ln 6 * 68 / 100) and sqrt(12 ln 6 * 414 / 100)."""
    assert number(neyshabur.NEYSHABUR2018) == pytest.approx(math.sqrt(12 * math.log(6) * 0.68), rel=1e-12)
    assert number(neyshabur.NEYSHABUR2018) == pytest.approx(3.823710, abs=1e-6)
    assert number(neyshabur.NEYSHABUR2018, "main_term_origin") == pytest.approx(9.434755, abs=1e-6)


def test_neyshabur_with_constants():
    """KL = 42^2 * 4 * 3 ln 24 * 414 / 2 = 13925520; grid of 2 * 100^(1/4) points."""
    kl = 42**2 * 4 * 3 * math.log(24) * 414 / 2
    assert kl == pytest.approx(13925520.0, rel=1e-7)
    expected = 4 * math.sqrt((kl + math.log(600 * 2 * 100**0.25 / 0.05)) / 99)
    assert number(neyshabur.NEYSHABUR2018, "paper") == pytest.approx(expected, rel=1e-12)
    assert number(neyshabur.NEYSHABUR2018, "paper") == pytest.approx(1500.1970, abs=1e-4)
    assert number(neyshabur.NEYSHABUR2018, "paper_at_init") == pytest.approx(607.99983, abs=1e-5)
    assert 10 ** neyshabur.margin_bound(math.log10(kl), 100, 0.05) == pytest.approx(1500.1969, abs=1e-4)


def test_neyshabur_rigorous():
    """Tolerance gamma / (2 sqrt 2): eta = .1, sigma = 2^(-34/4).

    Tolerance gamma / 4 (evidence with gamma / sqrt 2): 2^(-36/4).
    """
    assert number(neyshabur.NEYSHABUR2018, "init_rigorous") == pytest.approx(14.729974, abs=1e-6)
    assert number(neyshabur.NEYSHABUR2018, "init_rigorous", net(gamma=1 / math.sqrt(2))) == pytest.approx(
        20.829592, abs=1e-6
    )


def test_neyshabur_residual():
    """(1 + sqrt 18)^2 * 2 + (1 + sqrt 8)^2 * 4 = 113.59798."""
    given = net(tree=series(residual(layer("1")), residual(layer("2"))))
    phi = 2 * (1 + math.sqrt(18)) ** 2 + 4 * (1 + math.sqrt(8)) ** 2
    assert phi == pytest.approx(113.59798, abs=1e-5)
    assert number(neyshabur.NEYSHABUR2018, given=given) == pytest.approx(math.sqrt(12 * math.log(6) * phi / 100))
    row = neyshabur.NEYSHABUR2018.evaluate(given)
    assert row["forms"]["paper"]["log10"] is None and "sums of branches" in row["forms"]["paper"]["note"]
    assert "unverified" in row["note"] and row["forms"]["residual"]["log10"] is not None


# -- Pitas, Davies & Vandergheynst ---------------------------------------------------------------------------------


def test_pitas():
    """S = 42 * 2 * (sqrt 2 + sqrt 3 + sqrt(2 ln 8)) = 435.590261."""
    s = 84 * (math.sqrt(2) + math.sqrt(3) + math.sqrt(2 * math.log(8)))
    assert s == pytest.approx(435.590261, abs=1e-6)
    assert number(pitas.PITAS2017) == pytest.approx(s * math.sqrt(0.68), rel=1e-12)
    assert number(pitas.PITAS2017, "consistent") == pytest.approx(359.197, abs=1e-3)
    assert number(pitas.PITAS2017, "literal") == pytest.approx(219.125289, abs=1e-6)
    kl = s**2 * 34
    assert kl == pytest.approx(6451121.78, rel=1e-8)
    expected = 4 * math.sqrt((kl + math.log(600 * 2 * 100**0.25 / 0.05)) / 99)
    assert number(pitas.PITAS2017, "explicit") == pytest.approx(expected, rel=1e-12)


def test_pitas_sums():
    """126 (2 + sqrt(2 ln 64)) and 84 * 3 + sqrt(ln 64); 84 * 3.146264 + sqrt(ln 8)."""
    assert pitas.consistent_sum([(3, 1, 1, 4)], 1) == pytest.approx(615.391, abs=1e-3)
    assert pitas.literal_sum([(3, 1)], 4, 1) == pytest.approx(254.039, abs=1e-3)
    assert pitas.literal_sum([(1, 3), (1, 2)], 1, 2) == pytest.approx(265.728234, abs=1e-6)


@pytest.mark.parametrize(("taps", "positions"), [(27, 1000), (3, 10)])
def test_pitas_along_one_and_three_axes(taps, positions):
    """One layer, B = 1: sqrt(taps) stands for k, and the number of positions for n^2."""
    given = convolution()
    given.quantities["layer_norms"]["layers"]["c"] |= {"kernel_taps": taps, "input_positions": positions}
    expected = 42 * math.sqrt(taps) * (2 + math.sqrt(2 * math.log(4 * positions)))
    assert pitas.read(given).noise == pytest.approx(math.log10(expected))


def convolution():
    """All-ones 3x3 kernel on a zero-padded 4x4 map from a zero initialisation.

    Norms: operator (1 + 2 cos(pi / 5))^2, kernel 3, unrolled 10, MARS 9, (2,1) 39.595918.
    """
    given = evidence({"c": (np.ones((1, 1)), np.zeros((1, 1)))})
    op, zero = (1 + 2 * math.cos(math.pi / 5)) ** 2, {"lower": 0.0, "upper": 0.0}
    kernel = {"frobenius": 3.0, "operator_frobenius": 10.0, "mars": 9.0, "mars_with_bias": 9.0, "two_one": 39.595918}
    given.quantities["spectral_norm"]["layers"]["c"] |= {
        "value": op, "lower": op, "upper": op, "init": zero, "displacement": {"lower": op, "upper": op},
    }  # fmt: skip
    given.quantities["layer_norms"]["layers"]["c"] |= {
        "weight": kernel, "init": dict.fromkeys(kernel, 0.0), "displacement": kernel, "kernel_side": 3.0,
        "kernel_taps": 9, "input_resolution": 4, "input_size": 16, "output_size": 16, "input_positions": 16,
        "output_positions": 16, "frequencies": 36,
        "num_weights": 9,
    }  # fmt: skip
    given.quantities["input_norm"] |= {"dimension": 16, "resolution": 4, "output_dimension": 16}
    return given


def test_convolution():
    """One layer: all gains are 1.

    Pitas 615.391 * 3 / 10; Neyshabur sqrt(16 ln 16) * 10 / 10; Bartlett 39.595918 / 10;
    Gouk 4 sqrt(ln 32) * 16 outputs * 9 * 2 / 10; (2,1) norm, MARS norm and operator norm as distances.
    """
    given = convolution()
    assert number(pitas.PITAS2017, given=given) == pytest.approx(0.3 * 126 * (2 + math.sqrt(2 * math.log(64))))
    assert number(neyshabur.NEYSHABUR2018, given=given) == pytest.approx(math.sqrt(16 * math.log(16)), rel=1e-12)
    assert number(bartlett.BARTLETT2017, given=given) == pytest.approx(3.9595918, rel=1e-9)
    assert number(gouk.GOUK2021, given=given) == pytest.approx(0.4 * math.sqrt(math.log(32)) * 16 * 18, rel=1e-12)
    assert number(distance.DISTANCE_SPECTRAL, given=given) == pytest.approx(6.854102, abs=1e-6)
    assert number(distance.DISTANCE_MARS, given=given) == pytest.approx(9)
    assert neyshabur.NEYSHABUR2018.evaluate(given)["forms"]["main_term_kernel"]["note"] == "zero"  # h = 1: ln 1


# -- Bartlett, Foster & Telgarsky ----------------------------------------------------------------------------------


def test_bartlett():
    """T = 12 (2^(-1/3) + (2 / sqrt 18)^(2/3))^(3/2) = 19.865408; times 10 / 100."""
    t = 12 * (2 ** (-1 / 3) + (2 / math.sqrt(18)) ** (2 / 3)) ** 1.5
    assert t == pytest.approx(19.865408, abs=1e-6)
    assert number(bartlett.BARTLETT2017) == pytest.approx(t / 10, rel=1e-12)
    expected = 8 / 1000 + 72 * math.log(100) * math.sqrt(math.log(18)) * t / 10
    assert expected == pytest.approx(1119.8391, abs=1e-4)
    assert number(bartlett.BARTLETT2017, "dudley") == pytest.approx(
        expected + 3 * math.sqrt(math.log(40) / 200), rel=1e-12
    )
    assert number(bartlett.BARTLETT2017, "dudley") == pytest.approx(1120.2465, abs=1e-4)
    assert "vacuous" in bartlett.BARTLETT2017.evaluate(net())["forms"]["optimal_alpha"]["note"]


def test_bartlett_on_many_samples():
    """n = 1e8: 4.479324 and, with the best lower limit of the integral, 0.794173, beside the confidence term."""
    given, tail = net(num_data=10**8), 3 * math.sqrt(math.log(40) / 2e8)
    assert number(bartlett.BARTLETT2017, "dudley", given) - tail == pytest.approx(4.479324, abs=1e-6)
    assert number(bartlett.BARTLETT2017, "optimal_alpha", given) - tail == pytest.approx(0.794173, abs=1e-6)


# -- Long & Sedghi -------------------------------------------------------------------------------------------------


def test_long():
    """beta = 3, nu = 4.277936 - 1, W = 12, L = 2: B = 3 exp(2 nu + 3); B sqrt(.12), and sqrt(ln 20 / 100) more."""
    nu = 4.277936 - 1
    assert math.log(3) + 2 * nu + 3 == pytest.approx(10.654484, abs=1e-6)
    assert number(long.LONG2020) == pytest.approx(14681.8019 - math.sqrt(math.log(20) / 100), abs=1e-3)
    assert number(long.LONG2020, "exponential") == pytest.approx(14681.8019, abs=1e-4)
    assert number(long.LONG2020, "square_root") == pytest.approx(1.143895, abs=1e-6)
    assert number(long.LONG2020, "fast") == pytest.approx(1.861116, abs=1e-6)
    assert number(long.LONG2020, "minimum") == number(long.LONG2020, "square_root")


def test_long_with_small_initial_norms():
    """nu = 0: B = 3 e^3 = 60.2566; 20.8735 + 0.1731; sqrt((12 (3 + ln 3) + 2.9957) / 100) = 0.72235."""
    given = net()
    for row in given.quantities["spectral_norm"]["layers"].values():
        row["init"] = {"lower": 0.5, "upper": 0.5}
    assert number(long.LONG2020, "exponential", given) == pytest.approx(21.0466, abs=1e-4)
    assert number(long.LONG2020, "square_root", given) == pytest.approx(0.72235, abs=1e-5)


def test_long_derived():
    """Per layer B = 1 * (4.277936 + 2) + 2 * (2.302776 + 1) = 12.883487.

    Covers 0.706536 and, with 3 exp(2 nu + 3), 1.003550.
    """
    penalty = math.log(20)
    for constant, expected in ((math.log10(12.883487), 0.706536), (10.654484 / math.log(10), 1.003550)):
        least = min(long.cover(constant, 12, 100, 1.0, penalty, 10 ** (-e / 200)) for e in range(100, 800))
        assert least == pytest.approx(expected, abs=2e-6)
    per_layer, paper = (number(long.LONG2020, name) for name in ("cover_per_layer", "cover"))
    assert 0.706536 < per_layer < 0.74 and 1.003550 < paper < 1.03  # the grid costs a little
    assert number(long.LONG2020, "chaining") == pytest.approx(
        32.47 * math.exp(10.654484) * math.sqrt(0.12) + math.sqrt(math.log(20) / 200), rel=1e-6
    )


def test_chaining_constant():
    u = (np.arange(200000) + 0.5) / 200000
    integral = np.sqrt(np.log(1 + 2 / u)).mean()
    assert 24 * integral == pytest.approx(32.47, abs=0.01) and 24 * integral <= long.CHAINING


# -- Gouk, Hospedales & Pontil -------------------------------------------------------------------------------------


def test_gouk():
    """(2 * 3)(2 * 6)(1/3 + 2/6) = 48; 4 sqrt(ln 4) * 2 * 48 / 10 = 38.4 sqrt(ln 4); confidence 3 sqrt(ln 40 / 200)."""
    first, tail = 38.4 * math.sqrt(math.log(4)), 3 * math.sqrt(math.log(40) / 200)
    assert first == pytest.approx(45.212545, abs=1e-6) and tail == pytest.approx(0.407430, abs=1e-6)
    assert number(gouk.GOUK2021) == pytest.approx(first, rel=1e-12)
    for form, expected in (
        ("paper", first),
        ("constant_2", 22.606272),
        ("asymmetric", 18.838560),
        ("data_dependent", 10.134230),
        ("frobenius", 43.809330),
    ):
        assert number(gouk.GOUK2021, form) - tail == pytest.approx(expected, abs=1e-6)


def test_gouk_counts_the_outputs_of_the_network():
    """Before an average pooling the last layer has more."""
    given = net()
    given.quantities["layer_norms"]["layers"]["2"]["output_size"] = 50
    assert number(gouk.GOUK2021, given=given) == number(gouk.GOUK2021)
    given.quantities["input_norm"]["output_dimension"] = 3
    assert number(gouk.GOUK2021, given=given) == pytest.approx(1.5 * number(gouk.GOUK2021))


def test_gouk_scales_with_the_loss():
    """A loss of constant 2 in [0, 5]: 2 * first + 5 * confidence; the main term is that of constant 1."""
    first, tail = 38.4 * math.sqrt(math.log(4)), 3 * math.sqrt(math.log(40) / 200)
    given = net(lipschitz=2.0, loss_range=5.0)
    assert number(gouk.GOUK2021, "paper", given) == pytest.approx(2 * first + 5 * tail, rel=1e-12)
    assert number(gouk.GOUK2021, "main_term", given) == pytest.approx(first, rel=1e-12)
    assert "Lipschitz" in gouk.GOUK2021.evaluate(net(lipschitz=None))["forms"]["paper"]["note"]


def test_gouk_does_not_cover_max_pooling():
    given = net(structure={"notes": ["max-pool"]})
    row = gouk.GOUK2021.evaluate(given)
    assert row["forms"]["paper"]["log10"] is None and "max-pooling" in row["note"] and row["value"] > 0


# -- Li & Zhang ----------------------------------------------------------------------------------------------------


def test_li():
    """Q^2 = (sqrt 8 + sqrt 18)^2 = 50, sum D^2 = 6, H = 3: K = 36 * 3 ln 24 * 300 = 102968.944; 2 (K / 100)^(1/4)."""
    k = 36 * 3 * math.log(24) * 300
    assert k == pytest.approx(102968.944, abs=1e-3)
    assert number(li.LI2021) == pytest.approx(2 * (k / 100) ** 0.25, rel=1e-12)
    logarithm = math.log10(k)
    assert 10 ** li.at_epsilon(0.0, logarithm, 1.0, 100, 0.05) == pytest.approx(33.093574, abs=1e-6)
    assert number(li.LI2021, "paper") == pytest.approx(11.356483, abs=1e-5)
    assert number(li.LI2021, "paper", net(num_data=10**8)) == pytest.approx(0.358269, abs=1e-6)
    assert number(li.LI2021, "paper") < number(li.LI2021, "epsilon_grid") < 11.5


@pytest.mark.parametrize(("num_data", "expected"), [(100, 6.5100), (10**6, 0.64049), (10**8, 0.20286)])
def test_li_tight(num_data, expected):
    assert number(li.LI2021, "tight", net(num_data=num_data)) == pytest.approx(expected, rel=2e-5)


def test_li_tight_of_zero_inputs():
    """Nothing moves: sigma = 1 and eta = .01, ((6 / 2 + h(.01)) / .99 + ln(20 * 3 * 2 / .05)) / 200."""
    entropy = -0.01 * math.log(0.01) - 0.99 * math.log(0.99)
    expected = math.sqrt(((3 + entropy) / 0.99 + math.log(2400)) / 200)
    assert number(li.LI2021, "tight", net(input_norm={"max_l2": 0.0})) == pytest.approx(expected, rel=1e-12)
