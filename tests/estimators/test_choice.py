"""Samples chosen by size: their weights, and the error of the weighted mean."""

import numpy as np
import pytest

from genbound.estimators.choice import LEAST, Choice, choose_by_size
from genbound.estimators.estimate import data_sem

N = 300


@pytest.fixture
def sizes():
    return np.exp(2 * np.random.default_rng(0).standard_normal(N))


def choices(sizes, num, many, seed=1):
    source = np.random.default_rng(seed)
    return [choose_by_size(sizes, num, source.random(len(sizes))) for _ in range(many)]


def mean(choice, values):
    return float((choice.shares * values[choice.members]).mean())


@pytest.mark.parametrize("num", [LEAST, 9, 40, 151, N - 1])
@pytest.mark.parametrize("power", [0, 1, 4])
def test_so_many_different_samples_are_chosen_and_no_stratum_is_without_an_error(sizes, num, power):
    choice = choose_by_size(sizes**power, num, np.random.default_rng(0).random(N))
    assert len(set(choice.members.tolist())) == num == len(choice.strata)
    assert choice.sizes.sum() == N
    drawn = np.bincount(choice.strata, minlength=len(choice.sizes))
    assert ((drawn >= 2) | (drawn == choice.sizes)).all()
    assert choice.shares.mean() == pytest.approx(1)


def test_sizes_of_zero_are_drawn_alike():
    choice = choose_by_size(np.zeros(N), 40, np.random.default_rng(0).random(N))
    assert choice.shares == pytest.approx(1, rel=0.2)


def test_larger_samples_are_likelier_and_none_is_passed_over(sizes):
    seen = np.bincount(np.concatenate([choice.members for choice in choices(sizes, 60, 2000)]), minlength=N)
    assert seen.min() > 0
    order = np.argsort(sizes)
    assert seen[order[-10:]].min() == 2000 and seen[order[:100]].mean() < 300


def test_the_estimate_is_unbiased_and_its_variance_is_the_formulas(sizes):
    values = sizes * np.random.default_rng(2).exponential(size=N) + 0.5
    found = choices(sizes, 40, 4000)
    means = np.array([mean(choice, values) for choice in found])
    assert abs(means.mean() - values.mean()) < 4 * means.std() / len(means) ** 0.5
    sizes_of = found[0].sizes
    assert all((choice.sizes == sizes_of).all() for choice in found)
    # Of the strata themselves, which are the same in every choice.
    members = [np.unique(np.concatenate([c.members[c.strata == h] for c in found])) for h in range(len(sizes_of))]
    assert [len(stratum) for stratum in members] == sizes_of.tolist()
    drawn = np.bincount(found[0].strata)
    spread = np.array([values[stratum].var(ddof=1) if len(stratum) > 1 else 0.0 for stratum in members])
    exact = ((sizes_of / N) ** 2 * (1 - drawn / sizes_of) * spread / drawn).sum()
    assert means.var() == pytest.approx(exact, rel=0.1)


def test_the_stated_error_covers_and_is_right_in_the_mean(sizes):
    sizes = sizes**0.5
    values = sizes * np.random.default_rng(2).exponential(size=N) + 0.5
    found = choices(sizes, 40, 2000)
    errors = np.array([mean(choice, values) - values.mean() for choice in found])
    stated = np.array([choice.data_sem(values[choice.members], np.zeros(40), N) for choice in found])
    assert (np.abs(errors) <= 2 * stated).mean() >= 0.94
    assert errors.std() <= np.median(stated) <= 1.45 * errors.std()  # widened: few degrees of freedom


def test_the_stated_error_covers_where_tails_are_heavy(sizes):
    """Values that a size tells little of, with rare large ones: two stated errors hold the mean of all in 93 %."""
    sizes, num = sizes**0.5, 60
    values = sizes[:, None] * np.random.default_rng(2).exponential(size=(N, 8)) ** 1.5
    found = choices(sizes, num, 1000)
    errors = np.array([(c.shares[:, None] * values[c.members]).mean(0) - values.mean(0) for c in found])
    stated = np.array([c.data_sem(values[c.members], np.zeros((num, 8)), N) for c in found])
    assert (np.abs(errors) <= 2 * stated).mean(0).min() >= 0.93
    assert np.median(stated / errors.std(0)) < 1.4  # and not by stating too much


def test_it_beats_drawing_alike_where_sizes_tell_something(sizes):
    values = sizes * np.random.default_rng(2).exponential(size=N)
    source = np.random.default_rng(3)
    alike = np.array([values[source.choice(N, 40, replace=False)].mean() for _ in range(2000)])
    chosen = np.array([mean(choice, values) for choice in choices(sizes, 40, 2000)])
    assert chosen.std() < 0.5 * alike.std()


def test_a_constant_has_no_error(sizes):
    choice = choose_by_size(sizes, 40, np.random.default_rng(0).random(N))
    assert mean(choice, np.full(N, 3.0)) == pytest.approx(3)
    assert choice.data_sem(np.full(40, 3.0), np.zeros(40), N) == pytest.approx(0, abs=1e-12)


def test_one_stratum_has_the_error_of_samples_drawn_alike():
    values, noise = np.random.default_rng(0).standard_normal((20, 3)), np.full((20, 3), 0.1)
    choice = Choice(np.arange(20), np.zeros(20, int), np.array([50]), np.ones(1))
    assert choice.data_sem(values, noise, 50) == pytest.approx(data_sem(values, noise, 50))
    # Of a larger training set: first 50 of 400, then 20 of these.
    assert choice.data_sem(values, 0 * noise, 400) == pytest.approx(data_sem(values, 0 * noise, 400), rel=0.1)


def test_noise_of_the_values_is_taken_off(sizes):
    source = np.random.default_rng(5)
    choice = choose_by_size(sizes, 100, source.random(N))
    values = sizes[choice.members][:, None] + source.standard_normal((100, 400))
    stated = choice.data_sem(values, np.ones((100, 400)), N) ** 2
    assert np.sqrt(stated.mean()) < 0.4 * np.sqrt((choice.data_sem(values, np.zeros((100, 400)), N) ** 2).mean())


def test_another_order_is_the_same_choice(sizes):
    choice = choose_by_size(sizes, 40, np.random.default_rng(0).random(N))
    other = choice.ordered(np.arange(40)[::-1])
    assert mean(other, sizes) == pytest.approx(mean(choice, sizes))
    assert other.data_sem(sizes[other.members], np.zeros(40), N) == pytest.approx(
        choice.data_sem(sizes[choice.members], np.zeros(40), N)
    )


def test_samples_are_chosen_again_where_sizes_hardly_change(sizes):
    numbers = np.random.default_rng(0).random(N)
    one = set(choose_by_size(sizes, 40, numbers).members.tolist())
    moved = set(choose_by_size(sizes * (1 + 0.01 * numbers), 40, numbers).members.tolist())
    fresh = set(choose_by_size(sizes, 40, np.random.default_rng(9).random(N)).members.tolist())
    assert len(one & moved) > len(one & fresh)
