"""No quantity does more work than it did: passes and derivatives on a small network, against stored counts."""

import pytest

from benchmarks.counts import COUNTED, Counts, changed, count, counting, small_problem, stored


@pytest.mark.parametrize("name", COUNTED)
def test_the_work_is_what_it_was(name):
    """More is a regression. If it is meant, or there is less: `python -m benchmarks.counts --update`."""
    assert not changed(count(name), stored()[name])


def test_every_sample_of_a_pass_is_counted():
    problem = small_problem()
    with counting() as found:
        tape = problem.tape(range(5))
        tape.output_derivatives({})
    assert found == Counts(5, 0)
    with counting() as found:
        problem.tape(range(7)).gradients()
    assert found == Counts(7, 1)
    assert changed(Counts(100, 10), Counts(100, 10)) == [] and changed(Counts(104, 10), Counts(100, 10)) == []
    assert changed(Counts(106, 10), Counts(100, 11)) == ["106 samples in place of 100", "10 derivatives in place of 11"]
