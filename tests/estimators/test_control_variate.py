"""Control variates: the best slope, that it is left alone where it does not pay, and what is saved."""

import numpy as np
import pytest
from seeded import rng

from genbound.estimators.control_variate import PAYS, ControlledDraws


def draws(slopes, noise, counts, seed=0):
    """Values ``slopes * c + noise`` around means of each stratum."""
    source, counts = rng(seed), np.array(counts)
    stratum = np.repeat(np.arange(len(counts)), counts)
    control = source.normal(size=len(stratum)) * (1 + stratum)
    values = np.outer(control, slopes) + noise * source.normal(size=(len(stratum), len(slopes)))
    return ControlledDraws(values + 5.0 * stratum[:, None], control - 3.0 * stratum, stratum, counts)


def test_moments_are_those_of_every_stratum():
    found = draws([1.0, -2.0], 0.5, [3, 0, 5])
    for slopes in (None, np.array([0.3, -1.0])):
        mean, squares = found.moments(slopes)
        left = found.values - (0 if slopes is None else slopes * found.control[:, None])
        for s in (0, 2):
            own = left[found.stratum == s]
            assert mean[s] == pytest.approx(own.mean(0))
            assert squares[s] == pytest.approx(((own - own.mean(0)) ** 2).sum(0))
        assert not mean[1].any() and not squares[1].any()


def test_the_slope_of_a_control_that_explains_everything_is_exact():
    found = draws([1.5, -0.25], 0.0, [4, 4, 4])
    assert found.slopes() == pytest.approx([1.5, -0.25])
    assert found.moments(found.slopes())[1] == pytest.approx(0, abs=1e-20)


def test_the_slope_is_that_of_regression_with_weights():
    """By brute force: the slope that leaves the least squares, each stratum by the inverse of its control's spread."""
    found = draws([0.8], 0.3, [6, 9, 12])
    spread = [found.control[found.stratum == s].std(ddof=1) for s in range(3)]

    def left(slope):
        squares = found.moments(np.array([slope]))[1][:, 0]
        return (squares / spread).sum()

    grid = np.linspace(0, 2, 2001)
    assert found.slopes()[0] == pytest.approx(grid[np.argmin([left(slope) for slope in grid])], abs=1e-3)


def test_a_control_that_explains_less_than_it_costs_is_left_alone():
    helps, hardly = draws([1.0], 0.2, [20] * 5), draws([1.0], 20.0, [20] * 5)
    assert helps.slopes()[0] != 0 and hardly.slopes()[0] == 0
    squares, saved = (helps.moments(slopes)[1].sum() for slopes in (None, helps.slopes()))
    assert saved < PAYS * squares


def test_no_control_has_no_slope():
    found = draws([1.0, 1.0], 1.0, [3, 3])
    assert (ControlledDraws(found.values, 0 * found.control, found.stratum, found.counts).slopes() == 0).all()
