"""``check`` and ``compare`` of another checkpoint at the same seed: what is an error, and what is better."""

from handmade import bound, run

from genbound.results.comparison import compare
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


def test_a_certain_interval_of_other_weights_has_to_lie_beside():
    measured = {"hessian_distance": bound(1.0, 0.9, 1.0)}
    for value, lower, passed in ((1.05, 0.95, True), (1.2, 1.1, False)):
        baseline, retrained = pair(measured, {"hessian_distance": bound(value, lower, value)})
        assert check(retrained, baseline).passed == passed
