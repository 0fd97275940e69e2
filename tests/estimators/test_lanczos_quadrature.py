"""The spectrum from a few products, against the eigenvalues of dense matrices."""

import numpy as np
import pytest
import torch

from genbound.estimators.lanczos import Lanczos
from genbound.estimators.lanczos_quadrature import Recursions
from genbound.estimators.spectral_density import density

SPECTRA = {
    "outliers": np.concatenate([[25.0, 9.0, 4.0], np.linspace(-1, 1, 97)]),
    "flat": np.linspace(-3, 2, 120),
    "negative": -np.geomspace(1e-3, 50, 80),
    "clustered": np.concatenate([np.full(40, 2.0), 2.0 + 1e-9 * np.arange(40)]),
    "low rank": np.concatenate([np.zeros(60), [1.0, -2.0, 5.0]]),
    "two": np.array([3.0, -1.0]),
    "zero": np.zeros(5),
}


def recursions(values, probes=2, steps=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    matrix = (q * torch.from_numpy(values)) @ q.T
    run = Lanczos(lambda x: x @ matrix, torch.randn(probes, size, generator=generator, dtype=torch.float64))
    for _ in range(min(steps, size)):
        run.step(1e-12)
    alpha, beta = run.alpha.T.copy(), run.beta.T.copy()
    ended = np.cumsum(beta == 0, axis=1) - (beta == 0) > 0
    alpha[ended] = beta[ended] = np.nan
    return Recursions(alpha, beta, size, 1e-12, 1e-11)


@pytest.mark.parametrize("name", SPECTRA)
def test_the_sides_hold(name):
    values = SPECTRA[name]
    for seed in range(10):
        for steps in (1, 4, 30):
            found = recursions(values, steps=steps, seed=seed)
            (low, high), (least, most) = found.largest(), found.smallest()
            assert low <= values.max() + 1e-14 and values.max() - 1e-14 <= high
            assert least <= values.min() + 1e-14 and values.min() - 1e-14 <= most


@pytest.mark.parametrize("name", ["outliers", "low rank", "clustered"])
def test_the_sides_close_in(name):
    values = SPECTRA[name]
    found = recursions(values, steps=40)
    low, high = found.largest()
    assert high - low <= 1e-6 * np.ptp(values) + 1e-8
    wide = recursions(values, steps=1).largest() if name == "outliers" else None
    assert wide is None or wide[1] - wide[0] > 1


def test_quadratures_integrate_polynomials():
    """Of degree 2k - 1 exactly: b^T A^p b."""
    values = SPECTRA["flat"]
    found = recursions(values, probes=3, steps=4)
    longer = recursions(values, probes=3, steps=60)
    for (nodes, weights), (many, more) in zip(found.quadratures(), longer.quadratures(), strict=True):
        assert weights.sum() == pytest.approx(1)
        for power in range(8):
            assert (weights * nodes**power).sum() == pytest.approx((more * many**power).sum(), rel=1e-9)


def test_the_density_is_that_of_the_eigenvalues():
    values = SPECTRA["outliers"]
    grid = np.linspace(-3, 30, 2000)
    width = 0.5
    expected = (
        np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2).sum(1) / (width * np.sqrt(2 * np.pi)) / len(values)
    )
    mean, sem = density(recursions(values, probes=64, steps=40).quadratures(), len(values), grid, width)
    assert (mean * (grid[1] - grid[0])).sum() == pytest.approx(1, rel=1e-3)
    inside = np.abs(mean - expected) <= 4 * sem + 1e-3 * expected.max()
    assert inside.all()


def test_the_error_is_that_of_many_repetitions():
    values, grid = SPECTRA["outliers"], np.array([-0.5, 0.0, 0.5, 9.0])
    runs = [density(recursions(values, 3, 20, seed).quadratures(), len(values), grid, 0.5) for seed in range(60)]
    spread = np.std([mean for mean, _ in runs], axis=0, ddof=1)
    stated = np.sqrt(np.mean([sem**2 for _, sem in runs], axis=0))
    assert (np.abs(stated / spread - 1) < 0.35).all(), stated / spread
