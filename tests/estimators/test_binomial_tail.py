"""Binomial limits against exact rational arithmetic."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy.stats import beta

from genbound.estimators.binomial_tail import binomial_upper, log_binomial_cdf, trials_for


def exact_cdf(k, n, p):
    """As a fraction; ``p`` is the double itself, without rounding."""
    p = Fraction(p)
    return sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))


def exact_log(fraction):
    with mpmath.workdps(60):
        return float(mpmath.log(mpmath.mpf(fraction.numerator)) - mpmath.log(mpmath.mpf(fraction.denominator)))


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 50), (3, 10), (17, 60), (49, 50), (120, 400)])
@pytest.mark.parametrize("p", [0.01, 0.25, 0.5, 0.9, 0.999])
def test_tail_is_the_rational_one(k, n, p):
    assert log_binomial_cdf(k, n, p) == pytest.approx(exact_log(exact_cdf(k, n, p)), rel=1e-10, abs=1e-12)


def test_far_below_what_a_float_holds():
    """P[Bin(400, 0.999) <= 120] is about e^-1695."""
    exact = exact_log(exact_cdf(120, 400, 0.999))
    assert exact < -1600 and log_binomial_cdf(120, 400, 0.999) == pytest.approx(exact, rel=1e-12)


def test_ends():
    assert log_binomial_cdf(5, 5, 0.3) == log_binomial_cdf(2, 5, 0.0) == 0 and log_binomial_cdf(2, 5, 1.0) == -math.inf
    assert binomial_upper(7, 7, math.log(0.05)) == 1.0 == binomial_upper(3, 7, -math.inf)
    for wrong in ((-1, 5, -1.0), (6, 5, -1.0), (1, 5, 0.1), (0, 0, -1.0)):
        with pytest.raises(ValueError):
            binomial_upper(*wrong)


@pytest.mark.parametrize("level", [0.05, 0.005, 1e-9])
@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (9, 10), (30, 200), (512, 2693)])
def test_clopper_and_pearson(k, n, level):
    assert binomial_upper(k, n, math.log(level)) == pytest.approx(beta.ppf(1 - level, k + 1, n - k), rel=1e-8)


@pytest.mark.parametrize(
    ("k", "n", "log_level"), [(2, 12, -3.0), (10, 40, -20.0), (30, 100, -150.0), (100, 400, -268.0)]
)
def test_the_safe_end_is_never_inside(k, n, log_level):
    """At the answer the exact tail is at most the level; a little inside it is more."""
    p = binomial_upper(k, n, log_level)
    assert p == 1 or exact_log(exact_cdf(k, n, p)) <= log_level
    assert exact_log(exact_cdf(k, n, p - 1e-9)) > log_level


def test_coverage():
    random, p, n = np.random.default_rng(0), 0.13, 40
    limits = [binomial_upper(k, n, math.log(0.05)) for k in range(n + 1)]
    missed = np.mean([limits[k] < p for k in random.binomial(n, p, 50_000)])
    assert 0.01 < missed <= 0.05


@pytest.mark.parametrize(("limit", "rate"), [(0.309, 0.190), (0.5, 0.1), (0.3, 0.25), (0.2, 0.199)])
def test_as_few_trials_as_it_takes(limit, rate):
    level = math.log(0.05)
    found = trials_for(limit, rate, level)
    assert binomial_upper(math.ceil(rate * found - 1e-12), found, level) <= limit
    if found < 4096:  # none before it does
        assert all(binomial_upper(min(n, math.ceil(rate * n - 1e-12)), n, level) > limit for n in range(1, found))


def test_the_least_number_of_trials_lies_before_a_power_of_two_that_is_none():
    """3 of 15 successes have a limit below 0.44, 4 of 16 and 17 have not."""
    level = math.log(0.05)
    assert binomial_upper(3, 15, level) <= 0.4428 < binomial_upper(4, 17, level) < binomial_upper(4, 16, level)
    assert trials_for(0.4428, 0.19, level) == 15 and trials_for(1.0, 0.19, level) == 1


def test_no_number_of_trials_is_enough():
    assert trials_for(0.2, 0.2, math.log(0.05)) is None and trials_for(0.1999999, 0.2, math.log(0.05)) is None
