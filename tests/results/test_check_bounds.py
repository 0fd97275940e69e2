"""``check`` of bounds, which are compared as logarithms: tolerances, values edited by hand, and none at all."""

import pytest
from handmade import bound, run

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
