"""Divergences and widths: against torch's distributions, a numerical minimum, and the grid point by point."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from genbound.posterior.gaussian import LAMBDAS, Spectrum, best_width, divergence, log_union, objective


def test_the_grid_is_fixed():
    """Another grid is another bound: 51 widths from 1e-4 to 10."""
    assert len(LAMBDAS) == 51 and LAMBDAS[0] == pytest.approx(1e-4) and LAMBDAS[-1] == pytest.approx(10)
    assert np.allclose(np.diff(np.log10(LAMBDAS)), 0.1)
    assert log_union(3) == pytest.approx(3 * math.log(51))


def test_divergence_is_that_of_torch():
    torch.manual_seed(0)
    v, s, prior = torch.randn(7, dtype=torch.float64), torch.rand(7, dtype=torch.float64) + 0.1, 0.7
    exact = kl_divergence(Normal(v, s), Normal(torch.zeros_like(v), prior)).sum()
    found = divergence(prior, float(v.square().sum()), s.square().numpy(), np.ones(7))
    assert found == pytest.approx(float(exact), rel=1e-12)


def test_divergence_of_a_whole_covariance():
    """Along its eigenvectors a covariance is diagonal."""
    torch.manual_seed(1)
    root = torch.randn(5, 5, dtype=torch.float64)
    covariance, v, prior = root @ root.T + 0.1 * torch.eye(5, dtype=torch.float64), torch.randn(5).double(), 1.3
    exact = kl_divergence(
        MultivariateNormal(v, covariance), MultivariateNormal(torch.zeros(5).double(), prior**2 * torch.eye(5).double())
    )
    variances = torch.linalg.eigvalsh(covariance).numpy()
    assert divergence(prior, float(v.square().sum()), variances, np.ones(5)) == pytest.approx(float(exact), rel=1e-10)


def test_equal_axes_count_as_often_as_there_are():
    one = divergence(0.5, 2.0, np.array([0.04]), np.array([9]))
    assert one == pytest.approx(divergence(0.5, 2.0, np.full(9, 0.04), np.ones(9)), rel=1e-12)


def test_the_posterior_is_the_minimum():
    """1/s^2 = 1/lambda^2 + n h/tau minimises (n / 2 tau) sum s^2 h + KL, found numerically; F is its value."""
    h, square, scale = np.array([0.0, 0.3, 2.0, 11.0]), 1.7, 40.0
    width = best_width(square, Spectrum.of(h), scale)

    def total(logs):
        variances = np.exp(logs)
        return 0.5 * scale * variances @ h + divergence(width.prior, square, variances, np.ones(4))

    found = minimize(total, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    assert np.exp(found.x) == pytest.approx(width.variances, rel=1e-4)
    assert found.fun == pytest.approx(objective(width.prior, square, Spectrum.of(h), scale), rel=1e-8)


@pytest.mark.parametrize("square", [1e-6, 0.5, 300.0])
def test_no_other_width_of_the_grid_is_better(square):
    spectrum = Spectrum(np.array([0.01, 3.0]), np.array([90, 10]))
    values = [objective(prior, square, spectrum, 200.0) for prior in LAMBDAS]
    assert best_width(square, spectrum, 200.0).prior == LAMBDAS[int(np.argmin(values))]


def test_a_flat_spectrum_has_the_trace():
    spectrum = Spectrum.flat(6.0, 12)
    assert spectrum.values @ spectrum.counts == pytest.approx(6.0)
    assert (Spectrum.of(np.array([-1e-9, 2.0])).values >= 0).all() and Spectrum.flat(-1e-9, 3).values[0] == 0
