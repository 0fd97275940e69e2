"""The constants of the Hessian distance: docs/bounds/hessian_distance.md, step 4, and what both ways make of it."""

import math

import numpy as np
import pytest

from genbound.bounds.ju2022hessian import explicit


def problem():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    return root @ root.T, rng.normal(size=4), rng


def objective(covariance, hessian, v, a, b):
    return a * np.trace(covariance @ hessian) + b * v @ np.linalg.solve(covariance, v)


@pytest.mark.parametrize("a", [0.3, 2.0])
def test_best_covariance(a):
    """inf of a <S, H> + b v'S^-1 v is 2 sqrt(a b v'Hv): a lower bound for every S, approached by multiples of vv'."""
    hessian, v, rng = problem()
    b, form = 0.7, v @ hessian @ v
    expected = 2 * math.sqrt(a * b * form)
    for _ in range(200):
        root = rng.normal(size=(4, 4))
        assert objective(root @ root.T, hessian, v, a, b) >= expected
    s = math.sqrt(b / (a * form))
    near = s * (np.outer(v, v) + 1e-7 * np.eye(4))
    assert objective(near, hessian, v, a, b) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_factors(epsilon):
    """KL's half and the linear bound with 1 / beta = 1 + eps: b = (1 + eps)^2 C / (4 eps n).

    a = (1 + eps) / 2 without, eps / 2 with concentration of the Hessian; eps (no half of Taylor's) gives the published
    constant.
    """
    beta = 1 / (1 + epsilon)
    b = 0.5 / (2 * beta * (1 - beta))
    assert b == pytest.approx((1 + epsilon) ** 2 / (4 * epsilon))
    assert 2 * math.sqrt(b * (1 + epsilon) / 2) == pytest.approx(explicit(1.0, epsilon, 0.0), rel=1e-12)
    assert 2 * math.sqrt(b * epsilon / 2) == pytest.approx((1 + epsilon) / math.sqrt(2), rel=1e-12)
    assert 2 * math.sqrt(b * epsilon) == pytest.approx(1 + epsilon, rel=1e-12)
