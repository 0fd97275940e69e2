"""What values among samples of a size spread by, and how many samples an error takes."""

import numpy as np
import pytest

from genbound.estimators.choice import LEAST, choose_by_size, joined
from genbound.estimators.spread_by_size import Spreads, chances

N = 2000


@pytest.fixture(scope="module")
def population():
    """Sizes, values whose spread grows with the fourth power of it, and the deviation of a draw of each."""
    source = np.random.default_rng(0)
    sizes = source.uniform(0.1, 1, N)
    return sizes, 50 * sizes**2 + 30 * sizes**4 * source.standard_normal(N), 20 * sizes**4


def measured(population, choice, draws, source):
    sizes, values, deviation = population
    noise = source.standard_normal((len(choice.members), draws)) * deviation[choice.members, None]
    return values[choice.members] + noise.mean(1), noise.var(1, ddof=1) / draws


def learned(population, choice, draws, source):
    sizes = population[0]
    found = measured(population, choice, draws, source)
    return Spreads.learned(sizes[choice.members], *found, np.full(len(choice.members), draws), sizes)


def test_spreads_are_learned_in_the_mean_and_a_trend_is_none(population):
    source, sizes = np.random.default_rng(1), population[0]
    many = [learned(population, choose_by_size(sizes, 200, source.random(N)), 2, source) for _ in range(40)]
    large = np.argsort(sizes)[-400:-100]  # the ends have fewer neighbours; what grows is a little larger near by
    for found, truth in ((np.mean([m.between for m in many], 0), 900.0), (np.mean([m.draw for m in many], 0), 400.0)):
        assert (found[large] / (truth * sizes[large] ** 8)).mean() == pytest.approx(1.1, abs=0.2)
    steady = Spreads.learned(sizes[:99], 7 + 3 * sizes[:99], np.zeros(99), np.ones(99), sizes)
    assert steady.between.max() < 0.01 and not steady.draw.any()


def test_the_variance_is_what_choices_have(population):
    sizes, values, deviation = population
    source, spreads = np.random.default_rng(2), Spreads(900 * sizes**8, 400 * sizes**8)
    expected = spreads.variance(chances(spreads.of(2), 150), 2)
    means = []
    for _ in range(1500):
        choice = choose_by_size(sizes, 150, source.random(N), spreads.of(2))
        means.append((choice.shares * measured(population, choice, 2, source)[0]).mean())
    assert abs(np.mean(means) - values.mean()) < 4 * np.std(means) / 1500**0.5
    assert np.var(means) == pytest.approx(expected, rel=0.2)
    alike = [choose_by_size(sizes, 150, source.random(N)) for _ in range(1500)]
    by_size = [(c.shares * measured(population, c, 2, source)[0]).mean() for c in alike]
    assert np.var(means) < 0.75 * np.var(by_size)


def test_so_many_samples_leave_the_variance_and_one_fewer_does_not(population):
    sizes = population[0]
    spreads = Spreads(900 * sizes**8, 400 * sizes**8)
    num = spreads.samples_for(0.2, 2)
    left = [spreads.variance(chances(spreads.of(2), m), 2) for m in (num, num - 1)]
    assert left[0] <= 0.2 < left[1] and LEAST < num < N
    assert spreads.samples_for(1e9, 2) == LEAST and spreads.samples_for(0.0, 2) == N


@pytest.mark.parametrize(("between", "draw", "best"), [(1.0, 0.01, 2), (1.0, 1.0, 2), (0.001, 1.0, 16), (0.02, 1.0, 6)])
def test_the_draws_of_a_sample_are_the_cheapest(between, draw, best):
    """With a sample's price c0 and a draw's c1 the textbook has sqrt(c0 V / (c1 S^2)) draws."""
    spreads, among = Spreads(np.full(9, between), np.full(9, draw)), (2, 3, 4, 6, 8, 12, 16)
    found = spreads.best_draws(lambda num: 0.9 + 1.2 * num, among)
    assert found == best
    assert found == min(among, key=lambda num: abs(np.log(num / np.sqrt(0.9 * draw / (1.2 * between)))))


def test_chances_add_up_and_are_those_of_the_choice(population):
    expected = population[0] ** 4
    found, source = chances(expected, 100), np.random.default_rng(3)
    assert found.sum() == pytest.approx(100) and found.max() <= 1
    seen = np.zeros(N)
    for _ in range(1000):
        seen[choose_by_size(population[0], 100, source.random(N), expected).members] += 1
    order = np.argsort(found)
    for some in np.array_split(order, 8):
        assert seen[some].sum() / 1000 == pytest.approx(found[some].sum(), rel=0.1)
    assert (chances(np.array([100.0, 1, 1, 1, 1, 1, 1, 1, 1, 1]), 8) == 1).sum() == 1


def test_joined_choices_are_unbiased_and_state_their_error(population):
    """Two rounds of different numbers, weighted 1 to 3: the mean of both is the mean of the two means."""
    sizes, values, _ = population
    source, spreads = np.random.default_rng(4), 30 * sizes**4
    means, stated = [], []
    for _ in range(1500):
        one, two = choose_by_size(sizes, 40, source.random(N)), choose_by_size(sizes, 120, source.random(N), spreads)
        both = joined([one, two], [0.25, 0.75])
        means.append((both.shares * values[both.members]).mean())
        apart = [(c.shares * values[c.members]).mean() for c in (one, two)]
        assert means[-1] == pytest.approx(0.25 * apart[0] + 0.75 * apart[1])
        stated.append(float(both.data_sem(values[both.members], np.zeros(160), N)))
    errors = np.array(means) - values.mean()
    assert abs(errors.mean()) < 4 * errors.std() / 1500**0.5
    assert errors.std() < np.median(stated) < 1.3 * errors.std()
    assert (np.abs(errors) <= 2 * np.array(stated)).mean() >= 0.94
    assert both.total == pytest.approx(N)
