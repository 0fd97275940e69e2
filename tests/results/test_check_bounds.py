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


def test_a_bound_that_neither_run_has_is_not_compared():
    lost = {"bartlett2017": bound(None, note="needs a positive margin")}
    found = check(run(lost), run(lost))
    assert found.passed and [row.status for row in found.rows if row.measure == "bartlett2017"] == ["absent"]
    compared = sum(row.status == "ok" for row in found.rows)
    assert f"{compared} numbers agree" in found.to_markdown()
    assert "They have no value of a bound in common." in compare([run(lost), run(lost, name="later")]).summary()
    both = lost | {"li2021": bound(1.0)}
    assert "The same within the errors: 1 bound." in compare([run(both), run(both, name="later")]).summary()
