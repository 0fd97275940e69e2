"""Stratified means and their errors, and what the choice of samples adds."""

import numpy as np
import pytest
from seeded import rng

from genbound.estimators.allocation import choose_doubles
from genbound.estimators.estimate import (
    Sampled,
    data_sem,
    effective_freedom,
    means_by_column,
    stratified_mean,
    stratum_variances,
    student,
)


def test_stratified_mean_by_hand():
    """Strata {1, 3} and {10, 12, 14}: means 2 and 12; variances of the means 2/2 and 4/3."""
    counts, means, squares = np.array([2, 3]), np.array([2.0, 12.0]), np.array([2.0, 8.0])
    value, sem = stratified_mean(counts, means, stratum_variances(counts, squares))
    assert value == 7.0 and sem == pytest.approx(np.sqrt(1 + 4 / 3) / 2)


def test_stratified_mean_is_unbiased_and_its_error_right():
    r, truth, scale, counts = rng(0), rng(1).normal(size=6), rng(2).exponential(size=6), np.array([2, 3, 4, 8, 16, 2])
    found, errors = [], []
    for _ in range(4000):
        draws = [t + s * r.normal(size=c) for t, s, c in zip(truth, scale, counts, strict=True)]
        means = np.array([d.mean() for d in draws])
        squares = np.array([((d - d.mean()) ** 2).sum() for d in draws])
        value, sem = stratified_mean(counts, means, stratum_variances(counts, squares))
        found.append(value)
        errors.append(sem**2)
    expected = np.sqrt((scale**2 / counts).sum()) / 6
    assert np.std(found) == pytest.approx(expected, rel=0.05)
    assert np.mean(errors) == pytest.approx(expected**2, rel=0.05)
    assert abs(np.mean(found) - truth.mean()) < 4 * expected / np.sqrt(4000)


def test_a_single_draw_takes_its_variance_from_the_doubles():
    """Doubles {1, 3} and {2, 8}: variances 2 and 18, in the mean 10. A stratum of three draws keeps its own."""
    counts, doubles = np.array([1, 2, 2, 3]), np.array([False, True, True, False])
    found = stratum_variances(counts, np.array([0.0, 2.0, 18.0, 6.0]), doubles)
    assert found == pytest.approx([10.0, 2.0, 18.0, 3.0])


def test_error_with_single_draws_is_right_in_the_mean():
    """Strata whose spread grows with their size over four decades, most of them with one draw."""
    r, sizes = rng(0), np.exp(rng(1).uniform(-5, 5, size=400))
    counts = np.where(sizes > np.quantile(sizes, 0.9), 8, 1)
    doubles = choose_doubles(counts, sizes)
    assert counts[doubles].tolist() == [1] * doubles.sum() and 64 <= doubles.sum() <= 80
    counts = counts + doubles
    expected, found, errors = np.sqrt((sizes**2 / counts).sum()) / 400, [], []
    for _ in range(2000):
        draws = [s * r.normal(size=c) for s, c in zip(sizes, counts, strict=True)]
        squares = np.array([((d - d.mean()) ** 2).sum() for d in draws])
        value, sem = stratified_mean(
            counts, np.array([d.mean() for d in draws]), stratum_variances(counts, squares, doubles)
        )
        found.append(value)
        errors.append(sem**2)
    assert np.std(found) == pytest.approx(expected, rel=0.05)
    assert np.mean(errors) == pytest.approx(expected**2, rel=0.05)


def test_few_singles_all_get_a_second_draw():
    assert choose_doubles(np.array([1, 4, 1, 2]), np.ones(4)).tolist() == [True, False, True, False]
    assert not choose_doubles(np.array([2, 4]), np.ones(2)).any()


def test_data_sem_by_hand():
    """Values 1, 3 of 4: sample variance 2, over two samples 1, finite population 1 - 2/4; one degree of freedom."""
    values = np.array([[1.0], [3.0]])
    assert data_sem(values, np.zeros_like(values), 4) == pytest.approx([np.sqrt(0.5) * student(1)])
    assert data_sem(values, np.ones_like(values), 4) == pytest.approx([np.sqrt(0.25) * student(1)])
    assert data_sem(values, 5 * np.ones_like(values), 4) == [0.0]
    assert data_sem(values, np.zeros_like(values), 2) == [0.0]


def test_means_by_column_are_those_of_the_whole_array():
    """Of ten samples of forty; and each column's bits are its own, whatever stands beside it."""
    values, noise = rng(1).normal(size=(10, 3)), rng(2).random((10, 3)) / 10
    mean, left = Sampled.of(values, noise), data_sem(values, noise, 40)
    found = means_by_column(((values[:, i], noise[:, i]) for i in range(3)), 40)
    assert found["value"] == pytest.approx(mean.value) and found["sem"] == pytest.approx(mean.sem)
    assert found["data_sem"] == pytest.approx(left) and found["value"].shape == (3,)
    alone = means_by_column([(np.ascontiguousarray(values[:, 1]), None)], 40)
    assert alone["value"][0] == found["value"][1] and alone["sem"][0] == 0
    assert alone["data_sem"][0] == pytest.approx(data_sem(values[:, 1], np.zeros(10), 40))
    assert means_by_column([], 40)["value"].shape == (0,)


def test_the_freedom_of_a_variance_is_the_number_of_samples_that_make_it():
    """Squares 1, 2, 3: 6^2 / 14, and half of that where each is half free; one that makes all of it counts alone."""
    squares, free = np.array([1.0, 2.0, 3.0]), np.ones(3)
    assert effective_freedom(squares, free) == pytest.approx(36 / 14)
    assert effective_freedom(squares, free / 2) == pytest.approx(18 / 14)
    assert effective_freedom(np.array([0.0, 0.0, 5.0]), free) == 1
    assert np.isinf(effective_freedom(np.zeros(3), free))
    assert effective_freedom(rng(4).normal(size=30000) ** 2, np.ones(30000)) == pytest.approx(10000, rel=0.1)


def test_data_sem_covers_where_tails_are_heavy():
    """Two of it hold the mean of all in 93 % and more, where two of the plain standard error do not."""
    values, source, num = rng(5).exponential(size=400) ** 2, rng(6), 60
    inside = np.zeros(2)
    for _ in range(2000):
        own = values[source.choice(400, num, replace=False)]
        error, plain = abs(own.mean() - values.mean()), own.std(ddof=1) * np.sqrt((1 - num / 400) / num)
        inside += error <= 2 * np.array([plain, data_sem(own, np.zeros(num), 400)])
    assert inside[0] / 2000 < 0.92 and inside[1] / 2000 >= 0.93


def test_independent_measurements_of_the_same_samples_add_up():
    source = rng(3)
    a, b = (Sampled.of(source.normal(size=(6, 2)), source.exponential(size=(6, 2))) for _ in range(2))
    both, together = a + b, Sampled.of(a.samples + b.samples, a.noise + b.noise)
    assert both.value == pytest.approx(together.value) and both.sem == pytest.approx(together.sem)
    assert np.array_equal(both.samples, together.samples) and np.array_equal(both.noise, together.noise)
    assert together.value == pytest.approx((a.samples + b.samples).mean(0))
    assert together.sem == pytest.approx(np.sqrt((a.noise + b.noise).sum(0)) / 6)


def test_the_freedom_of_a_sum_of_variances():
    """Noises 3 and 1 with 2 and 4 degrees of freedom: 4^2 / (9 / 2 + 1 / 4); known ones add none of their own."""
    samples, noise = np.zeros((2, 1)), np.array([[3.0], [1.0]])
    unsure = Sampled.of(samples, noise, np.array([9 / 2 + 1 / 4]))
    assert unsure.freedom == pytest.approx(16 / 4.75)
    assert unsure.widened == pytest.approx(unsure.sem * student(16 / 4.75)) and unsure.widened > 1.5 * unsure.sem
    known = Sampled.of(samples, noise)
    assert np.isinf(known.freedom) and known.widened == known.sem
    assert (unsure + known).freedom == pytest.approx(64 / 4.75)
    assert (unsure + unsure).freedom == pytest.approx(2 * 16 / 4.75)
    nothing = Sampled.of(samples, np.zeros_like(samples))
    assert nothing.widened == 0 and (nothing + unsure).freedom == pytest.approx(unsure.freedom)


def test_widened_errors_cover_as_they_say():
    """Means of four normal numbers: 1.96 plain errors cover 86 %, 1.96 widened ones 95 %."""
    draws = rng(4).normal(size=(20000, 4))
    sem = draws.std(1, ddof=1) / 2
    inside = [np.mean(np.abs(draws.mean(1)) <= 1.96 * factor * sem) for factor in (1.0, student(3))]
    assert inside[0] < 0.88 and inside[1] == pytest.approx(0.95, abs=0.006)
    assert student(np.array([3.0, np.inf]))[1] == 1 and student(1e9) == pytest.approx(1, abs=1e-5)
