"""Widths of single intervals for a sum of roots: by hand, and whatever the intervals turn out to be."""

import numpy as np
import pytest
from seeded import rng

from genbound.estimators.root_sum import LOOSEST, widths_for_sum


def test_by_hand():
    """An exact root of 3 leaves 0.03 to spare, which one of 1 may have beside its own 0.01: 1 - 0.96^2."""
    lower, upper = np.array([9.0, 0.25]), np.array([9.0, 1.0])
    assert widths_for_sum(lower, upper, np.array([False, True]), 0.01) == pytest.approx([0, 1 - 0.96**2])
    assert widths_for_sum(lower, upper, np.array([True, True]), 0.01) == pytest.approx([1 - 0.99**2] * 2)
    # One that is too wide and cannot be narrowed: the others are not asked for more.
    assert widths_for_sum(lower, upper, np.array([True, False]), 0.01) == pytest.approx([1 - 0.99**2, 0])
    # Much to spare: no more than what still says something.
    assert widths_for_sum(np.array([1e4, 0.25]), np.array([1e4, 1.0]), np.array([False, True]), 0.1)[
        1
    ] == pytest.approx(1 - (1 - LOOSEST) ** 2)
    assert not widths_for_sum(lower, upper, np.zeros(2, bool), 0.01).any()


@pytest.mark.parametrize("seed", range(50))
def test_the_sum_is_known_whatever_is_narrowed_first(seed):
    """Brackets shrink at random; each stops as soon as it is as narrow as was asked, the others go on."""
    stream, tolerance = rng(seed), float(rng(seed).choice([0.3, 0.03, 0.003]))
    truth = stream.lognormal(sigma=3, size=12)
    lower, upper = truth * stream.random(12), truth * (1 + stream.random(12))
    left, asked = stream.random(12) < 0.9, np.zeros(12)
    lower[~left], upper[~left] = truth[~left], truth[~left]
    asked = widths_for_sum(lower, upper, np.ones(12, bool), tolerance)
    while True:
        left &= upper - lower > asked * upper
        if not left.any():
            break
        asked[left] = widths_for_sum(lower, upper, left, tolerance)[left]
        some = left & (stream.random(12) < 0.3)
        # Sides only close in on the truth.
        shrink = stream.random(12) ** 2
        lower[some] = (truth - (truth - lower) * shrink)[some]
        upper[some] = (truth + (upper - truth) * shrink)[some]
    assert np.sqrt(upper).sum() - np.sqrt(lower).sum() <= tolerance * np.sqrt(upper).sum() * (1 + 1e-12)
