"""The shape of a tail against laws whose shape is known, and the skewness of a mean in closed form."""

import numpy as np
import pytest

from genbound.estimators.tail import pareto_shape, skewness_of_mean


@pytest.mark.parametrize("shape", [0.1, 0.3, 0.5, 0.8])
def test_shape_of_a_pareto_law_is_found(shape):
    uniform = np.random.default_rng(0).random((20, 20000))
    found = [pareto_shape(row) for row in (uniform**-shape - 1) / shape]
    assert np.mean(found) == pytest.approx(shape, abs=0.06)


def test_a_normal_tail_is_light_and_a_cauchy_tail_is_heavy():
    random = np.random.default_rng(0)
    assert pareto_shape(np.abs(random.standard_normal(2000))) < 0.2
    assert pareto_shape(np.abs(random.standard_cauchy(2000))) > 0.7


def test_too_few_draws_say_nothing():
    assert pareto_shape(np.arange(10.0)) == np.inf


def test_equal_draws_have_no_tail():
    assert pareto_shape(np.ones(100)) == -np.inf


def test_skewness_of_the_mean_of_exponential_draws():
    """A draw has variance 1, third moment 2 and skewness 2: the mean of m draws has 2 / sqrt(m)."""
    one = skewness_of_mean(np.array([16]), np.array([[2.0]]), np.array([[1.0]]))
    assert one[0] == pytest.approx(0.5)
    assert skewness_of_mean(np.array([16]), np.array([[0.0]]), np.array([[0.0]]))[0] == 0
