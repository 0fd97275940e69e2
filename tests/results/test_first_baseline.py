"""A first baseline: there is nothing to compare yet, and a tolerance is a tolerance already."""

import pytest
from handmade import bound, run

from genbound.errors import GenboundError
from genbound.results.regression import check


def test_a_misspelt_tolerance_is_refused_at_the_first_baseline(tmp_path):
    results, file = run({"hessian_distance": bound(0.5)}), tmp_path / "base.json"
    with pytest.raises(GenboundError, match=r"'hesian_distance' fits no number.*hessian_distance"):
        check(results, file, update=True, tolerances={"hesian_distance": "5%"})
    assert not file.exists()
    assert check(results, file, update=True, tolerances={"hessian_distance": "5%"}) and file.exists()
