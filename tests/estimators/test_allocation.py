"""How many draws every stratum gets, and what is expected of its spread."""

import numpy as np
import pytest
from seeded import rng

from genbound.estimators.allocation import allocate, choose_pilot, expect, predict, shrink


def test_allocation():
    variances, targets = rng(0).exponential(size=(40, 3)) ** 3, np.array([0.05, 0.1, 0.2])
    counts = allocate(variances, targets, minimum=4, budget=10**6)
    reached = np.sqrt((variances / counts[:, None]).sum(0)) / 40
    assert (reached <= targets).all()
    assert reached.max() > 0  # and it is not wasteful, although it rounds up to powers of two
    assert (reached / targets).max() > 0.93
    assert counts.min() >= 4 and all(c & (c - 1) == 0 for c in counts.tolist())
    assert counts[variances.sum(1).argmax()] > counts[variances.sum(1).argmin()]


def test_allocation_scales_with_the_target():
    variances, minimum = rng(1).exponential(size=(30, 2)), 1
    a, b = (allocate(variances, np.full(2, t), minimum=minimum, budget=10**9).mean() for t in (0.01, 0.005))
    assert b == pytest.approx(4 * a, rel=0.05)


def test_allocation_keeps_to_its_budget():
    variances = rng(2).exponential(size=(50, 2)) ** 4
    for target in (1e-6, 0.05, 0.06, 0.07, 0.1):  # out of reach, within reach but for the rounding up, and affordable
        counts = allocate(variances, np.full(2, target), minimum=2, budget=32)
        assert counts.min() >= 2 and counts.mean() <= 32
    assert counts.mean() > 8 and np.array_equal(counts, allocate(variances, np.full(2, 0.1), minimum=2, budget=1e9))


@pytest.mark.parametrize("targets", [[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
def test_allocation_without_targets_or_spread(targets):
    assert (allocate(np.zeros((5, 2)), np.array(targets), minimum=4, budget=8) == 4).all()
    found = allocate(rng(0).exponential(size=(5, 2)), np.array(targets), minimum=4, budget=8)
    assert found.shape == (5,) and (found >= 4).all()


def _waste(variances, used):
    """Draws that an allocation in proportion to the square roots of ``used`` takes, of what the best one takes."""
    weight = np.maximum(np.sqrt(used), 0.1 * np.sqrt(used).mean())
    return (variances / weight).mean() * weight.mean() / np.sqrt(variances).mean() ** 2


@pytest.mark.parametrize("num", [2, 4])
def test_sizes_that_explain_the_spread_mend_a_short_pilot(num):
    generator = rng(5)
    sizes = generator.exponential(size=400) ** 2
    truth = (sizes * np.exp(0.2 * generator.normal(size=400)))[:, None] ** 2
    pilot = truth * generator.chisquare(num - 1, size=truth.shape) / (num - 1)
    assert _waste(truth, shrink(pilot, sizes[:, None] ** 2, num)) < 1.08
    assert _waste(truth, pilot) > 1.2


@pytest.mark.parametrize("num", [2, 4, 16])
def test_sizes_that_explain_nothing_do_little_harm(num):
    generator = rng(6)
    truth = generator.exponential(size=(400, 1)) ** 4
    pilot = truth * generator.chisquare(num - 1, size=truth.shape) / (num - 1)
    squares = generator.exponential(size=(400, 1)) ** 2
    expected = squares * truth.mean() / squares.mean()
    assert _waste(truth, shrink(pilot, expected, num)) < 1.06 * _waste(truth, pilot)


def test_shrinking_without_expectations_or_with_few_strata_is_none():
    variances, ones = rng(7).exponential(size=(20, 3)), np.ones((20, 3))
    assert (shrink(variances, 0 * ones, 4) == variances).all()
    assert (shrink(variances[:4], ones[:4], 4) == variances[:4]).all()
    assert shrink(0 * ones, 0 * ones, 4).max() == 0


def test_a_stratum_is_expected_to_be_as_those_that_resemble_it():
    generator = rng(8)
    sizes = generator.lognormal(sigma=1.5, size=300)
    truth = np.stack([sizes**2, 5 * sizes**2.5], 1)
    assert expect(sizes, truth[:, :1]) == pytest.approx(truth[:, :1], rel=1e-10)
    found = expect(sizes, truth * generator.chisquare(1, size=truth.shape))
    assert np.median(np.abs(np.log(found / truth))) < 0.35  # 24 draws of one degree of freedom each
    # Its own values do not count, those of its neighbours do.
    other = truth.copy()
    other[7] *= 1e6
    change = expect(sizes, other) != expect(sizes, truth)
    assert not change[7].any() and 12 <= change[:, 0].sum() <= 24
    assert (expect(np.zeros(5), np.ones((5, 1))) == 1).all()
    assert (expect(np.ones(1), np.full((1, 2), 3.0)) == 3).all()
    assert (expect(np.ones(2), np.array([[3.0], [4.0]])) == [[4.0], [3.0]]).all()


def test_a_small_budget_leaves_every_stratum_its_minimum():
    counts = allocate(np.array([[1.0], [1e8], [1e-8]]), np.array([1e-9]), minimum=2, budget=4)
    assert counts.min() == 2 and counts[1] > 2 and counts.mean() <= 4


def test_a_pilot_visits_the_largest_and_some_of_the_others():
    sizes = rng(0).exponential(size=1000)
    chosen, large = choose_pilot(sizes, 96)
    assert len(chosen) <= 96 and chosen == sorted(set(chosen)) and set(large) <= set(chosen)
    # Coarsely: sizes within a quarter of an octave count as equal.
    assert sizes[large].min() >= 0.8 * np.sort(sizes)[-32]
    assert choose_pilot(sizes * (1 + 1e-7), 96) == (chosen, large)
    assert choose_pilot(sizes[:50], 96)[0] == list(range(50))


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0, 2.0])
def test_spread_beyond_the_pilot_is_a_power_of_the_size(power):
    """Sizes over five decades; 0 is a spread that they say nothing of."""
    generator, num = rng(1), 4
    sizes = generator.lognormal(sigma=2, size=2000)
    truth = np.stack([9 * sizes**power, sizes ** (2 - power)], 1)
    piloted, _ = choose_pilot(sizes, 128)
    pilot = truth[piloted] * generator.chisquare(num - 1, size=(len(piloted), 2)) / (num - 1)
    found = predict(pilot, np.array(piloted), sizes, num)
    for column in (slice(0, 1), slice(1, 2)):
        assert _waste(truth[:, column], found[:, column]) < 1.1
        beyond = np.setdiff1d(np.arange(2000), piloted)
        assert found[beyond, column].sum() == pytest.approx(truth[beyond, column].sum(), rel=0.25)


def test_a_pilot_without_spread_expects_none():
    assert predict(np.zeros((3, 1)), np.arange(3), np.array([1.0, 2.0, 0.0, 5.0]), 2).tolist() == [[0.0]] * 4


def test_costly_draws_are_fewer():
    variances, costs = np.ones((64, 1)), np.repeat([1.0, 16.0], 32)
    counts = allocate(variances, np.array([0.02]), minimum=2, budget=1e9, costs=costs)
    assert (counts[:32] == 4 * counts[32:]).all()
    assert (1 / counts).sum() / 64**2 <= 0.02**2
