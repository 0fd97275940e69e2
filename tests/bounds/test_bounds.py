"""Bounds are arithmetic: every number here can be worked out with a pencil."""

import math

import numpy as np
import pytest

from genbound.bounds import BOUNDS, Evidence
from genbound.bounds.ju2022hessian import explicit, label_noise_factor, main_term
from genbound.formatting import rounded_down, value_text

LOSSES = {
    "train_loss": 0.1, "train_error": 0.02, "largest_loss": 2.0, "constant_loss": 0.69, "constant_error": 0.5,
    "reweighted_range": 8.0, "reweighted_train_loss": 0.4, "reweighted_constant_loss": 0.6,
}  # fmt: skip


def evidence(**changes):
    """n = 400, C = 2; forms 8 [7, 8] and 2 [2, 2]; traces 18 +- 1 and 0.5 exact; norms 1/3 and 2."""
    quantities = {
        "losses": LOSSES,
        "max_quadratic_form": {
            "layers": {
                "a": {"value": 8.0, "lower": 4.5, "upper": 8.0}, "b": {"value": 2.0, "lower": 2.0, "upper": 2.0},
            },
            "convention": "theorem", "note": "",
        },
        "max_positive_trace": {
            "layers": {"a": {"value": 18.0, "sem": 1.0}, "b": {"value": 0.5, "sem": 0.0}}, "note": "",
        },
        "displacement_norm": {"layers": {"a": {"value": 1 / 3}, "b": {"value": 2.0}}, "total": {"value": 2.0}},
    }  # fmt: skip
    for name in changes.pop("without", ()):
        del quantities[name]
    quantities |= changes.pop("quantities", {})
    return Evidence(**{"num_data": 400, "loss_range": 2.0, "quantities": quantities, **changes})


def value(name, given):
    return BOUNDS[name].evaluate(given)


def test_hessian_distance():
    """sqrt(2 * 8) = 4, sqrt(2 * 2) = 2, over sqrt(400) = 20: 0.3; lower side sqrt(2 * 4.5) = 3: 0.25."""
    row = value("hessian_distance", evidence())
    assert row["value"] == pytest.approx(0.3, rel=1e-12) and row["upper"] == row["value"]
    assert row["lower"] == pytest.approx(0.25, rel=1e-12)
    assert row["log10"] == pytest.approx(math.log10(0.3)) == row["forms"]["main_term"]["log10"]
    assert (row["bounds"], row["kind"], row["vacuous"]) == ("loss", "measure", False)
    assert row["reference"] == "Ju, Li & Zhang 2022"


def test_epsilon_forms():
    """The form is eps L + (1 + eps) sqrt((1 + eps) / (2 eps)) * 0.3.

    For 1 it is 0.1 + 2 * 1 * 0.3; for 0.1 it is 0.01 + 1.1 sqrt(5.5) * 0.3.
    """
    forms = value("hessian_distance", evidence())["forms"]
    assert 10 ** forms["epsilon_1"]["log10"] == pytest.approx(0.7, rel=1e-12)
    assert 10 ** forms["epsilon_0.1"]["log10"] == pytest.approx(0.01 + 0.33 * math.sqrt(5.5), rel=1e-12)
    assert explicit(1.0, 0.1, 0.0) / 1.1 == pytest.approx(2.345, abs=5e-4)


def test_trace_distance():
    """18 / 9 = 2 and 0.5 * 4 = 2: sqrt(2 * 2) twice, 4 / 20; two standard errors: (16, 20) / 9."""
    row = value("trace_distance", evidence())
    assert row["value"] == pytest.approx(0.2, rel=1e-12)
    assert row["lower"] == pytest.approx((math.sqrt(2 * 16 / 9) + 2) / 20, rel=1e-12)
    assert row["upper"] == pytest.approx((math.sqrt(2 * 20 / 9) + 2) / 20, rel=1e-12)


def test_noisy_label_distance():
    """F = [[.8, .2], [.2, .8]]: inverse [[4, -1], [-1, 4]] / 3, row sum 5/3, and C = 8 for 2, both under the root.

    The form is eps times the reweighted loss 0.4 and 2 main terms; 0.4 + 0.516 is more than the constant's 0.6.
    """
    f = np.array([[0.8, 0.2], [0.2, 0.8]])
    row = value("noisy_label_distance", evidence(confusion=f))
    assert row["value"] == pytest.approx(0.2 * math.sqrt(4 * 5 / 3), rel=1e-12)
    assert 10 ** row["forms"]["epsilon_1"]["log10"] == pytest.approx(0.4 + 2 * row["value"], rel=1e-12)
    assert row["vacuous"] is True and row["note"].startswith("C = 8 and the training loss 0.4 are those")
    same = {"losses": {**LOSSES, "reweighted_range": 2.0, "reweighted_train_loss": 0.1}}
    identity = value("noisy_label_distance", evidence(confusion=np.eye(2), quantities=same))
    trace = value("trace_distance", evidence())
    for key in ("value", "lower", "upper", "log10", "forms"):
        assert identity[key] == trace[key]


def test_noisy_label_distance_needs_the_reweighted_loss():
    reason = {"losses": {"train_loss": 0.1, "reason": "one label for every sample"}}
    row = value("noisy_label_distance", evidence(confusion=np.eye(2), quantities=reason))
    assert row["value"] is None and row["note"] == "losses: one label for every sample"


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.4])
def test_label_noise_factor_of_symmetric_noise(p, classes):
    q = p / (classes - 1)
    f = np.full((classes, classes), q) + (1 - p - q) * np.eye(classes)
    assert label_noise_factor(f) == pytest.approx((1 - q + p) / (1 - p * classes / (classes - 1)), rel=1e-12)


def test_label_noise_factor_takes_rows():
    """F = [[1, 0], [.5, .5]]: inverse [[1, 0], [-1, 2]]: rows 1 and 3, columns 2 and 2."""
    assert label_noise_factor(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx(3.0)


def test_singular_or_missing_confusion():
    row = value("noisy_label_distance", evidence(confusion=np.full((2, 2), 0.5)))
    assert row["value"] is None and "singular" in row["note"] and row["vacuous"] is None
    row = value("noisy_label_distance", evidence())
    assert row["value"] is None and "--confusion" in row["note"]


def test_vacuous_against_the_best_constant_predictor():
    """0.1 + 0.3 against 0.69; n = 100 doubles the bound to 0.6: 0.7 >= 0.69."""
    assert value("hessian_distance", evidence())["vacuous"] is False
    assert value("hessian_distance", evidence(num_data=100))["vacuous"] is True
    exactly = {"losses": {**LOSSES, "constant_loss": 0.1 + main_term([8.0, 2.0], 2.0, 400)}}
    assert value("hessian_distance", evidence(quantities=exactly))["vacuous"] is True
    unknown = {"losses": {**LOSSES, "constant_loss": None}}
    assert value("hessian_distance", evidence(quantities=unknown))["vacuous"] is None


def test_zero_is_a_value():
    form = {"layers": {"a": {"value": 0.0, "lower": 0.0, "upper": 0.0}}, "convention": "theorem", "note": ""}
    row = value("hessian_distance", evidence(quantities={"max_quadratic_form": form}))
    assert row["value"] == 0.0 and row["log10"] is None
    assert row["vacuous"] is False  # 0.1 is better than the best constant predictor


def test_missing_quantities_are_named_with_their_reason():
    given = evidence(without=["max_quadratic_form"], quantities={"_missing": {"max_quadratic_form": "no data"}})
    row = value("hessian_distance", given)
    assert row["value"] is None and row["lower"] is None and row["log10"] is None
    assert row["note"] == "needs max_quadratic_form: no data"


def test_paper_code_is_noted():
    form = {
        "layers": {"a": {"value": -1.0, "lower": -1.0, "upper": -1.0}},
        "convention": "paper-code",
        "note": "scripts",
    }
    row = value("hessian_distance", evidence(quantities={"max_quadratic_form": form}))
    assert row["note"] == "scripts" and row["value"] == 0.0  # a negative "maximum" counts as zero, no domain error


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=list(BOUNDS))
def test_every_row_is_filled_in(bound):
    assert bound.summary and bound.reference and bound.requires
    assert bound.kind in ("certificate", "bound", "measure", "norm")
    assert bound.bounds in (("distance", "norm") if bound.kind == "norm" else ("loss", "error"))


def test_below_the_gap():
    """0.3 against a gap of 0.4: three quarters. A gap that is not positive has no ratio."""
    for gap, ratio, below in ((0.4, 0.75, True), (0.1, 3.0, False), (-0.1, None, False), (None, None, None)):
        row = value("hessian_distance", evidence(quantities={"losses": {**LOSSES, "generalization_gap": gap}}))
        assert row["gap_ratio"] == (None if ratio is None else pytest.approx(ratio)) and row["below_gap"] is below
    norm = value("distance_frobenius", evidence(quantities={"losses": {**LOSSES, "generalization_gap": 9.0}}))
    assert norm["gap_ratio"] is norm["below_gap"] is norm["vacuous"] is None and norm["kind"] == "norm"


def test_a_maximum_over_some_samples_has_no_upper_side():
    row = value("hessian_distance", evidence(num_samples=64))
    assert row["at_least"] and row["upper"] is None and (row["num_samples"], row["num_data"]) == (64, 400)
    assert row["over_samples"] == {"lower": row["lower"], "upper": row["value"]}
    assert value_text(row) == "≥ 0.25 (64 of 400)"
    assert "at_least" not in value("hessian_distance", evidence(num_samples=400))


def test_a_lower_limit_is_not_below_for_sure():
    """0.3 of 64 samples lies below a gap of 0.4 and is not vacuous; over all 400 it may be neither."""
    for gap, constant, below, vacuous in ((0.4, 9.0, None, None), (0.1, 0.2, False, True)):
        losses = {**LOSSES, "generalization_gap": gap, "constant_loss": constant}
        row = value("hessian_distance", evidence(num_samples=64, quantities={"losses": losses}))
        assert (row["below_gap"], row["vacuous"]) == (below, vacuous)
        assert row["gap_ratio"] == pytest.approx(0.3 / gap)
        whole = value("hessian_distance", evidence(num_samples=400, quantities={"losses": losses}))
        assert (whole["below_gap"], whole["vacuous"]) == (below is None, vacuous is not None)


def test_a_lower_limit_is_rounded_down():
    assert [rounded_down(x) for x in (0.41499, 0.9999, 123.9, 0.0)] == ["0.414", "0.999", "123", "0"]


def test_what_the_theorem_adds_counts():
    """0.02 + 0.42 + 0.1 against 0.5: the displacement 0.84, over twice sigma = 0.05 and the root of 400, is 0.42."""
    flat = {
        "sigma": 0.05, "sem_error": 0.012, "displacement": 0.1, "norm_displacement": 0.84, "norm_weights": 1.0,
    }  # fmt: skip
    row = value("jiang2020_flatness", evidence(quantities={"flatness": flat}))
    assert row["value"] == pytest.approx(0.42) and row["vacuous"] is True
    width = 2 * math.hypot(0.12, 0.05)
    assert (row["lower"], row["upper"]) == (pytest.approx(0.42 * (1 - width)), pytest.approx(0.42 * (1 + width)))


def test_a_network_without_a_lipschitz_constant_is_the_reason_given():
    """Attention on token numbers has no input norm either, but that is not why the bound does not exist."""
    reason = "softmax attention is not globally Lipschitz"
    quantities = {"structure": {"tree": None, "reason": reason}, "_missing": {"input_norm": "does not apply: integers"}}
    row = BOUNDS["neyshabur2018"].evaluate(Evidence(num_data=10, loss_range=1.0, quantities=quantities))
    assert row["value"] is None and row["log10"] is None and row["note"] == reason
