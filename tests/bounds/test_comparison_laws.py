"""Laws of the competing bounds: n, margin, rescaling, zero displacement, names, intervals, overflow, refusals."""

import math

import numpy as np
import pytest
from fixtures import NET, W1, W1_INIT, W2, W2_INIT, evidence, layer, net, series

from genbound.bounds.arora2018compression import ARORA2018
from genbound.bounds.bartlett2017spectral import BARTLETT2017
from genbound.bounds.distance import (
    DISTANCE_FROBENIUS,
    DISTANCE_MARS,
    DISTANCE_MARS_MATRIX,
    DISTANCE_SPECTRAL,
    DISTANCE_SPECTRAL_MATRIX,
    DISTANCE_TWO_ONE,
    DISTANCE_TWO_ONE_MATRIX,
)
from genbound.bounds.fisher_rao import FISHER_RAO
from genbound.bounds.gouk2021distance import GOUK2021
from genbound.bounds.jiang2020fantastic import (
    JIANG2020_FLATNESS,
    JIANG2020_MAGNITUDE,
    JIANG2020_SHARPNESS,
    JIANG2020_SHARPNESS_MAGNITUDE,
)
from genbound.bounds.li2021improved import LI2021
from genbound.bounds.long2020sharp import LONG2020
from genbound.bounds.neyshabur2018pacbayes import NEYSHABUR2018
from genbound.bounds.path_norm import PATH_NORM
from genbound.bounds.petzka2021flatness import PETZKA2021
from genbound.bounds.pitas2017pacbayes import PITAS2017
from genbound.bounds.spectra import MARTIN2021_ALPHA, STABLE_RANK

# bound -> power of n in its main term
POWER_OF_N = {
    NEYSHABUR2018: -0.5, PITAS2017: -0.5, BARTLETT2017: -0.5, LONG2020: -0.5, GOUK2021: -0.5, LI2021: -0.25,
    ARORA2018: -0.5, JIANG2020_FLATNESS: -0.5, JIANG2020_MAGNITUDE: -0.5, JIANG2020_SHARPNESS: -0.5,
    JIANG2020_SHARPNESS_MAGNITUDE: -0.5, PATH_NORM: -0.5, FISHER_RAO: -0.5,
    DISTANCE_FROBENIUS: 0, DISTANCE_SPECTRAL: 0, DISTANCE_MARS: 0, DISTANCE_TWO_ONE: 0,
    DISTANCE_SPECTRAL_MATRIX: 0, DISTANCE_MARS_MATRIX: 0, DISTANCE_TWO_ONE_MATRIX: 0,
    STABLE_RANK: 0, MARTIN2021_ALPHA: 0, PETZKA2021: 0,
}  # fmt: skip
WITH_MARGIN = (NEYSHABUR2018, PITAS2017, BARTLETT2017, ARORA2018, PATH_NORM)
OF_THE_DISPLACEMENT = (
    NEYSHABUR2018, PITAS2017, BARTLETT2017, LONG2020, GOUK2021, LI2021, JIANG2020_FLATNESS, JIANG2020_SHARPNESS,
    DISTANCE_FROBENIUS, DISTANCE_SPECTRAL, DISTANCE_MARS, DISTANCE_TWO_ONE,
    DISTANCE_SPECTRAL_MATRIX, DISTANCE_MARS_MATRIX, DISTANCE_TWO_ONE_MATRIX,
)  # fmt: skip
WITH_SPECTRAL_NORMS = (
    NEYSHABUR2018,
    PITAS2017,
    BARTLETT2017,
    LONG2020,
    LI2021,
    DISTANCE_SPECTRAL,
    DISTANCE_SPECTRAL_MATRIX,
)
WITH_STRUCTURE = (NEYSHABUR2018, PITAS2017, BARTLETT2017, LONG2020, GOUK2021, LI2021, ARORA2018)
# forms that do not change when one layer is scaled by t and the next by 1 / t, in both models
RESCALING = {
    NEYSHABUR2018: ("main_term", "main_term_origin", "paper", "paper_at_init", "init_rigorous"),
    PITAS2017: ("main_term", "consistent", "literal", "explicit", "rigorous"),
    BARTLETT2017: ("main_term", "dudley"),
    LONG2020: ("cover_per_layer",),
    GOUK2021: ("main_term", "paper", "constant_2", "asymmetric", "data_dependent", "frobenius"),
}
EXTENSIVE = [(bound, form) for bound, forms in RESCALING.items() for form in forms]


# what bounds nothing: it has no unit of loss or error
NORMS = {
    "path_norm", "fisher_rao", "distance_frobenius", "distance_spectral", "distance_mars", "distance_two_one",
    "distance_spectral_matrix", "distance_mars_matrix", "distance_two_one_matrix", "stable_rank", "martin2021_alpha",
    "petzka2021",
}  # fmt: skip


def name(value):
    return value if isinstance(value, str) else getattr(value, "name", str(value))


@pytest.mark.parametrize(("bound", "power"), POWER_OF_N.items(), ids=name)
def test_power_of_n(bound, power):
    found = [bound.evaluate(net(num_data=n))["value"] for n in (100, 1600)]
    assert found[1] / found[0] == pytest.approx(16**power, rel=1e-10)
    row = bound.evaluate(net())
    assert row["value"] == pytest.approx(10 ** row["forms"]["main_term"]["log10"]) == pytest.approx(10 ** row["log10"])
    assert row["kind"] == ("norm" if bound.name in NORMS else "measure")


@pytest.mark.parametrize("bound", WITH_MARGIN, ids=name)
def test_inverse_in_the_margin(bound):
    assert bound.bounds == ("norm" if bound.name in NORMS else "error")
    assert bound.evaluate(net(gamma=4.0))["value"] == pytest.approx(bound.evaluate(net())["value"] / 4, rel=1e-10)
    for form, found in bound.evaluate(net(gamma=4.0))["forms"].items():
        before = bound.evaluate(net())["forms"][form]["log10"]
        if found["log10"] is not None and before is not None and form != "squared":
            assert found["log10"] < before


@pytest.mark.parametrize("bound", WITH_MARGIN, ids=name)
@pytest.mark.parametrize("margin", [0.0, -0.5])
def test_no_value_without_a_positive_margin(bound, margin):
    row = bound.evaluate(net(gamma=margin))
    assert row["value"] is None and row["log10"] is None and not row["forms"]
    assert "percentile 5" in row["note"] and "positive" in row["note"]


@pytest.mark.parametrize(("bound", "form"), EXTENSIVE, ids=name)
@pytest.mark.parametrize("t", [0.1, 10.0])
def test_rescaling_of_layers(bound, form, t):
    scaled = {"1": (t * W1, t * W1_INIT), "2": (W2 / t, W2_INIT / t)}
    before, after = (bound.evaluate(given)["forms"][form]["log10"] for given in (net(), evidence(scaled)))
    assert after == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("bound", OF_THE_DISPLACEMENT, ids=name)
def test_zero_at_zero_displacement(bound):
    row = bound.evaluate(evidence({"1": (W1, W1), "2": (W2, W2)}))
    assert row["value"] == row["lower"] == row["upper"] == 0.0 and row["log10"] is None
    assert row["forms"]["main_term"]["note"].endswith("zero")
    if bound is LI2021:  # what remains of the bound: sqrt((3 ln 2000 + 8) / 100)
        expected = math.sqrt((3 * math.log(2000) + 8) / 100)
        assert 10 ** row["forms"]["paper"]["log10"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bound", OF_THE_DISPLACEMENT, ids=name)
def test_linear_in_a_small_displacement(bound):
    """Halving a small displacement halves the main term (Li & Zhang: the fourth root of a square)."""
    found = []
    for t in (2e-6, 1e-6):
        layers = {key: (init + t * (weight - init), init) for key, (weight, init) in NET.items()}
        found.append(bound.evaluate(evidence(layers))["value"])
    assert found[0] / found[1] == pytest.approx(math.sqrt(2) if bound is LI2021 else 2, rel=1e-4)


@pytest.mark.parametrize("bound", POWER_OF_N, ids=name)
def test_names_of_layers_do_not_matter(bound):
    renamed = evidence({"head.weight": NET["1"], "stem.weight": NET["2"]})
    before, after = bound.evaluate(net()), bound.evaluate(renamed)
    assert after["value"] == before["value"] and after["forms"] == before["forms"]


@pytest.mark.parametrize("bound", POWER_OF_N, ids=name)
def test_order_of_the_sides(bound):
    row = bound.evaluate(net(slack=0.01))
    sides = row.get("over_samples", row)  # what is not known beyond what was looked at has no upper side in the row
    assert sides["lower"] <= row["value"] <= sides["upper"]
    assert (row["upper"] is None) == bool(row.get("at_least"))
    if bound in WITH_SPECTRAL_NORMS:
        assert row["lower"] < row["upper"]
        exact = bound.evaluate(net())["value"]
        assert row["lower"] <= exact <= row["upper"] * (1 + 1e-12)


@pytest.mark.parametrize("bound", POWER_OF_N, ids=name)
@pytest.mark.parametrize("residual", [False, True])
def test_150_layers_do_not_overflow(bound, residual):
    layers = {str(i): (1e4 * np.eye(2), 1e4 * np.eye(2) - 1) for i in range(150)}
    tree = series(*map(layer, layers))
    if residual:
        tree = series(*({"op": "sum", "children": [{"op": "identity"}, layer(n)]} for n in layers))
    row = bound.evaluate(evidence(layers, tree=tree))
    assert row["log10"] is not None and math.isfinite(row["log10"])
    if bound in (NEYSHABUR2018, PITAS2017, BARTLETT2017, GOUK2021, LONG2020):
        assert row["value"] is None and row["log10"] > 590 and row["vacuous"]
    for form in row["forms"].values():
        assert form["log10"] is None or math.isfinite(form["log10"])


@pytest.mark.parametrize("bound", WITH_STRUCTURE, ids=name)
def test_no_global_constant(bound):
    row = bound.evaluate(net(structure={"tree": None, "reason": "softmax attention is not globally Lipschitz"}))
    assert row["value"] is None and "softmax attention is not globally Lipschitz" in row["note"]


@pytest.mark.parametrize("bound", POWER_OF_N, ids=name)
def test_missing_quantities_are_named(bound):
    for quantity in bound.requires:
        row = bound.evaluate(net(**{quantity: None}))
        assert row["value"] is None and row["note"].startswith(f"needs {quantity}")


@pytest.mark.parametrize("bound", POWER_OF_N, ids=name)
def test_missing_numbers_are_no_crash(bound):
    """Any number of any summary may be null."""
    for quantity in bound.requires:
        for key in net().quantities[quantity]:
            if key in ("tree", "reason", "layers", "activations", "plain", "positively_homogeneous", "notes"):
                continue
            row = bound.evaluate(net(**{quantity: {key: None}}))
            assert row["value"] is not None or row["note"]


@pytest.mark.parametrize("bound", WITH_STRUCTURE, ids=name)
def test_biases_leave_the_main_term_with_a_doubt(bound):
    row = bound.evaluate(net(bias=0.5))
    assert row["value"] > 0
    if bound is not GOUK2021:
        assert "unverified" in row["note"] and "biases" in row["note"]
    paper = row["forms"]["paper"]
    assert (paper["log10"] is None) == (bound is not GOUK2021)
    assert paper["log10"] is not None or paper["note"]


@pytest.mark.parametrize("bound", [GOUK2021, LI2021, LONG2020], ids=name)
def test_unbounded_losses(bound):
    row = bound.evaluate(net(loss_range=math.nan))
    if bound is GOUK2021:
        assert row["value"] > 0 and "bounded loss" in row["forms"]["paper"]["note"]
    else:
        assert row["value"] is None and "bounded loss" in row["note"]


def test_the_margin_loss_is_the_empirical_term():
    """0.49 + 0.0 is below chance 0.5, 0.49 + 0.02 is not."""
    small = {"compression": {"max_output_l2": 1e-4}}
    assert ARORA2018.evaluate(net(**small, margin={"margin_loss": 0.1}))["vacuous"] is False
    assert ARORA2018.evaluate(net(**small, margin={"margin_loss": 0.5}))["vacuous"] is True
