"""``check`` and ``compare`` of another checkpoint at the same seed: what is an error, and what is better."""

import pytest
from handmade import bound, run

from genbound.results.comparison import compare
from genbound.results.observations import observe
from genbound.results.regression import check


def pair(before, after, change=lambda results: None):
    """The baseline, and a run of other weights at the same seed."""
    baseline, retrained = run(before), run(after, name="later")
    retrained.checkpoint["sha256"] = "d" * 64
    change(retrained)
    return baseline, retrained


def test_the_error_of_a_bound_counts_at_equal_seed_too():
    """The intervals of a searched sigma: 0.635 and 0.670 differ by 0.035 where one alone is known to 0.1."""
    baseline, retrained = pair(
        {"jiang2020_flatness": bound(0.635, 0.395, 0.875)}, {"jiang2020_flatness": bound(0.670, 0.349, 0.991)}
    )
    assert check(retrained, baseline).passed
    assert "No. The same within the errors: 1 bound." in compare([baseline, retrained]).summary()
    retrained.checkpoint["sha256"] = baseline.checkpoint["sha256"]  # of the same weights it is the same arithmetic
    assert not check(retrained, baseline).passed


def test_who_knows_that_two_networks_in_memory_differ_says_so():
    """Neither has a digest, so that they count as one network, whose bound cannot become better."""
    baseline, retrained = (run({"hessian_distance": bound(value)}) for value in (0.5, 0.4))
    for results in (baseline, retrained):
        results.checkpoint = {"path": None, "sha256": None}
    assert not check(retrained, baseline).passed
    found = check(retrained, baseline, same_network=False)
    assert found.passed and [row.measure for row in found.rows if row.status == "improved"] == ["hessian_distance"]
    assert all(row.fell for row in found.rows if row.status == "improved")
    assert not check(baseline, retrained, same_network=False).passed


def test_a_certain_interval_of_other_weights_has_to_lie_beside():
    measured = {"hessian_distance": bound(1.0, 0.9, 1.0)}
    for value, lower, passed in ((1.05, 0.95, True), (1.2, 1.1, False)):
        baseline, retrained = pair(measured, {"hessian_distance": bound(value, lower, value)})
        assert check(retrained, baseline).passed == passed


NORM = {"distance_frobenius": bound(2.0, unit="distance") | {"kind": "norm"}}
NEARER = {"distance_frobenius": bound(1.0, unit="distance") | {"kind": "norm"}}


def test_a_norm_that_fell_is_better():
    def nearer(results):
        for row in results.quantities["displacement_norm"]["layers"].values():
            row["value"] /= 2

    baseline, retrained = pair(NORM, NEARER, nearer)
    found = check(retrained, baseline)
    assert found.passed and {row.measure for row in found.rows if row.status == "improved"} == {
        "displacement_norm", "distance_frobenius"
    }  # fmt: skip
    assert "No, better. Better: distance_frobenius (-50 %)." in compare([baseline, retrained]).summary()
    assert not check(baseline, retrained).passed and "Yes. Worse" in compare([retrained, baseline]).summary()
    assert not check(retrained, baseline, tolerances={"distance_frobenius": "-5%"}).passed


@pytest.mark.parametrize(
    ("quantity", "row", "better"),
    [
        ("displacement_norm", {"init_norm": 3.0}, False),
        ("hessian_trace", {"value": 3.0, "sem": 0.1}, True),
        ("layer_norms", {"weight": {"frobenius": 3.0}, "displacement": {"mars": 1.0}, "bias_norm": 2.0}, True),
        ("layer_norms", {"init": {"frobenius": 3.0}}, False),
        ("layer_norms", {"init_bias_norm": 3.0}, False),
        ("layer_norms", {"in_channels": 3.0}, False),
        ("matrix_norms", {"init": {"spectral": {"value": 3.0, "lower": 3.0, "upper": 3.0}}}, False),
        ("power_law", {"alpha": 3.0}, False),
    ],
)
def test_which_numbers_are_better_where_they_fall(quantity, row, better):
    results = run({})
    results.quantities = {quantity: {"layers": {"init.weight": row}}}
    assert {o.falls_when_better for o in observe(results).values()} == {better}


def test_an_observed_range_that_moved_is_said():
    """C = 2 and 8; what the largest loss happens to be is not what a bound was asked for."""
    baseline, retrained = run(), run(loss_range={"value": 8.0, "kind": "observed"})
    said = "C, the largest loss seen, moved from 2 to 8; genbound compare puts both on one."
    assert said in check(retrained, baseline).remarks and said in check(retrained, baseline).to_markdown()
    given = run(loss_range={"value": 8.0, "kind": "clip:8"})
    for one, other in ((baseline, baseline), (given, baseline), (given, given)):
        assert not check(one, other).remarks
