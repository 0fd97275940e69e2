"""``check`` of bounds, which are compared as logarithms: tolerances, values edited by hand, and none at all."""

import json

import pytest
from handmade import bound, run

from genbound.cli.main import main
from genbound.results.comparison import compare
from genbound.results.regression import check


@pytest.mark.parametrize(
    ("rule", "value", "passes"),
    [
        ("50%", 0.625, True), ("50%", 0.51, True), ("50%", 0.49, False), ("50%", 1.49, True), ("50%", 1.51, False),
        ("5%", 0.951, True), ("5%", 0.949, False), ("-50%", 0.51, True), ("-50%", 0.49, False), ("200%", 1e-9, True),
        ("200%", 3.01, False), ("0.4", 0.61, True), ("0.4", 0.59, False), ("-0.4", 0.59, False), ("2", 1e-9, True),
    ],
)  # fmt: skip
def test_a_tolerance_is_as_wide_below_a_bound_as_above_it(rule, value, passes):
    """In per cent of the bound, or in its unit; no bound falls by more than all of it."""
    found = check(run({"li2021": bound(value)}), run({"li2021": bound(1.0)}), tolerances={"li2021": rule})
    assert found.passed == passes


@pytest.mark.parametrize("log10", [{}, {"log10": -0.3010299956639812}, {"log10": None}])
@pytest.mark.parametrize("other", [{}, {"seed": 1, "samples_sha256": "x"}])
def test_a_value_that_is_edited_by_hand_is_what_counts(tmp_path, log10, other):
    """Halved, with its logarithm or without: outside of its interval it is a limit of its own."""
    baseline = run(samples_sha256="x").save(tmp_path / "base") / "results.json"
    content = json.loads(baseline.read_text())
    content["bounds"]["hessian_distance"] |= {"value": 0.5, **log10}
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(content))
    results = str(run(**{"samples_sha256": "x", **other}).save(tmp_path / "now"))
    assert main(["check", results, "--baseline", str(baseline)]) == 0
    assert main(["check", results, "--baseline", str(edited)]) == 1
    assert main(["check", results, "--baseline", str(edited), "--tolerance", "hessian_distance=+25%"]) == 0


ZERO = bound(0.0, sum_of_squares={"log10": None, "note": "zero"})
SOME = bound(0.43, sum_of_squares={"log10": -0.73})


@pytest.mark.parametrize("sha256", ["a" * 64, "d" * 64])
def test_from_and_to_zero(sha256):
    """It has no logarithm: 0.43 is more than 0, whichever of the runs has it, and a 0 of a form is a number."""
    none, some = run({"distance_frobenius": ZERO}), run({"distance_frobenius": SOME}, name="later")
    some.checkpoint["sha256"] = sha256
    rows = [row for row in check(some, none).rows if row.measure == "distance_frobenius"]
    assert [(row.status, row.difference) for row in rows] == [("regression", "0.43"), ("regression", "0.186")]
    rows = [row for row in check(none, some).rows if row.measure == "distance_frobenius"]
    fell = "regression" if sha256 == none.checkpoint["sha256"] else "improved"
    assert [(row.status, row.difference) for row in rows] == [(fell, "-100 %")] * 2
    for rule, passed in (("0.5", True), ("0.4", False), ("ignore", True)):
        assert check(some, none, tolerances={"distance_frobenius": rule}).passed == passed
        assert check(none, some, tolerances={"distance_frobenius": rule}).passed == passed


def test_from_zero_to_what_overflows_and_to_what_its_error_reaches():
    def later(**row):
        found = run({"trace_distance": bound(**row)}, name="later")
        found.checkpoint["sha256"] = "d" * 64
        return found

    none = run({"trace_distance": bound(0.0)})
    assert not check(later(value=None, log10=400.0), none).passed
    assert check(none, later(value=None, log10=400.0)).passed
    assert check(later(value=0.2, lower=0.0, upper=0.4), none).passed  # two standard errors to either side
    assert not check(later(value=0.2, lower=0.19, upper=0.21), none).passed


def test_a_bound_that_neither_run_has_is_not_compared():
    lost = {"bartlett2017": bound(None, note="needs a positive margin")}
    found = check(run(lost), run(lost))
    assert found.passed and [row.status for row in found.rows if row.measure == "bartlett2017"] == ["absent"]
    compared = sum(row.status == "ok" for row in found.rows)
    assert f"{compared} numbers agree" in found.to_markdown()
    assert "They have no value of a bound in common." in compare([run(lost), run(lost, name="later")]).summary()
    both = lost | {"li2021": bound(1.0)}
    assert "The same within the errors: 1 bound." in compare([run(both), run(both, name="later")]).summary()
