"""The binary divergence and its inverse: closed forms, the safe end, and coverage of unequal means."""

import math

import mpmath
import numpy as np
import pytest

from genbound.estimators.kl_inverse import binary_kl, kl_inverse


@pytest.mark.parametrize("q", [0.0, 1e-6, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.999999])
def test_divergence_in_fifty_digits(q, p):
    with mpmath.workdps(50):
        a, b = mpmath.mpf(q), mpmath.mpf(p)
        exact = (a * mpmath.log(a / b) if q else 0) + ((1 - a) * mpmath.log((1 - a) / (1 - b)) if q < 1 else 0)
    assert binary_kl(q, p) == pytest.approx(float(exact), rel=1e-9, abs=1e-15)


def test_ends():
    assert binary_kl(0.3, 0.3) == 0 and binary_kl(0.5, 0.0) == binary_kl(0.5, 1.0) == math.inf
    assert binary_kl(0.0, 0.0) == binary_kl(1.0, 1.0) == 0
    assert kl_inverse(1.0, 0.2) == kl_inverse(0.2, math.inf) == 1.0
    for wrong in ((-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="probabilities"):
            binary_kl(*wrong)
    for wrong in ((1.1, 0.1), (0.1, -1.0), (0.1, math.nan)):
        with pytest.raises(ValueError):
            kl_inverse(*wrong)


@pytest.mark.parametrize("c", [1e-9, 1e-4, 0.02, 0.7, 12.0])
def test_closed_form_at_zero(c):
    """kl(0, p) = -ln(1 - p)."""
    assert kl_inverse(0.0, c) == pytest.approx(-math.expm1(-c), rel=1e-6)


def test_the_safe_end_is_never_inside():
    """The divergence at the answer, in fifty digits, is at least c: the largest p with kl <= c is not above it."""
    random = np.random.default_rng(0)
    with mpmath.workdps(50):
        for q, c in zip(random.uniform(0, 1, 300), 10 ** random.uniform(-8, 1, 300), strict=True):
            p = kl_inverse(float(q), float(c))
            a, b = mpmath.mpf(float(q)), mpmath.mpf(p)
            exact = mpmath.inf if p == 1 else a * mpmath.log(a / b) + (1 - a) * mpmath.log((1 - a) / (1 - b))
            assert exact >= mpmath.mpf(float(c)), (q, c)
            if p < 1 - 1e-6:  # and it is tight
                assert exact <= c * (1 + 1e-6) + 1e-13


def test_pinsker():
    """kl >= 2 (p - q)^2, so the inverse is at most q + sqrt(c / 2)."""
    for q in (0.0, 0.2, 0.7):
        for c in (1e-3, 0.05, 0.3):
            assert q <= kl_inverse(q, c) <= q + math.sqrt(c / 2) + 1e-12


def test_unequal_means_are_covered():
    """20,000 sets of 50 trials, half of mean 0.1 and half of 0.5: the mean 0.3 exceeds the limit in 5 % at most."""
    random, means = np.random.default_rng(1), np.repeat([0.1, 0.5], 25)
    counts = (random.random((20_000, 50)) < means).sum(1)
    limits = {k: kl_inverse(k / 50, math.log(20) / 50) for k in range(51)}
    missed = np.mean([limits[int(k)] < 0.3 for k in counts])
    assert missed <= 0.05
    # A limit that forgets the logarithm of the level misses more.
    assert np.mean([kl_inverse(k / 50, 0.1 / 50) < 0.3 for k in counts]) > 0.05
