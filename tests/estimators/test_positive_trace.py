"""The trace of a positive part by probes, against matrices with known eigenvalues."""

import numpy as np
import pytest
import torch
from cases import D

from genbound.estimators.positive_trace import CLOSED, TraceBracket, positive_trace

DIMENSION = 120


def many_small_negative():
    return torch.cat([torch.tensor([10.0, 5, 2, 1], dtype=D), -0.02 * torch.linspace(0.1, 1, DIMENSION - 4, dtype=D)])


def heavy():
    """Both signs, falling as slowly as 1/k: no few of them hold the trace, and they pile up at the kink."""
    sizes = 1 / torch.arange(1, DIMENSION + 1, dtype=D)
    return sizes * (1 - 1.9 * (torch.arange(DIMENSION) % 2))


def flat():
    return torch.linspace(-1, 1, DIMENSION, dtype=D)


def one_giant():
    return torch.cat([torch.tensor([1e3], dtype=D), torch.linspace(-1, 1, DIMENSION - 1, dtype=D)])


SPECTRA = [many_small_negative, heavy, flat, one_giant]


def matrix(eigenvalues):
    torch.manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=D))
    return (q * eigenvalues) @ q.T


def signs(num, generator):
    return 2.0 * torch.randint(0, 2, (num, DIMENSION), generator=generator).to(D) - 1


def estimate(h, seed, steps, probes=10):
    generator = torch.Generator().manual_seed(seed)
    starts = [(lambda v: v @ h, signs(n, generator)) for n in (1, probes // 2, probes - probes // 2)]
    return positive_trace(starts[0], starts[1:], steps, 1e-12, D)


SEEDS = [8, pytest.param(100, marks=pytest.mark.slow)]


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("steps", [4, 30])
@pytest.mark.parametrize("seeds", SEEDS)
def test_the_interval_and_its_error_hold_the_trace(spectrum, steps, seeds):
    """However few the steps: what they do not know makes the interval wide, not wrong."""
    eigenvalues = spectrum()
    h, truth = matrix(eigenvalues), float(eigenvalues.clamp(min=0).sum())
    found = [estimate(h, seed, steps) for seed in range(seeds)]
    inside = np.mean([f.lower - 1.96 * f.sem <= truth <= f.upper + 1.96 * f.sem for f in found])
    assert inside >= (0.9 if seeds > 50 else 0.75)
    if steps == 30:
        assert all(f.upper - f.lower <= 1.5 * CLOSED * f.value for f in found)
        assert np.mean([f.sem for f in found]) <= 0.09 * truth


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_interval_is_certain_of_its_probes(spectrum):
    """Of each probe beside the subspace that was taken out, which is exact: z'H+z by the dense matrix."""
    eigenvalues = spectrum()
    h = matrix(eigenvalues)
    values, vectors = torch.linalg.eigh(h)
    positive = (vectors * values.clamp(min=0)) @ vectors.T
    generator = torch.Generator().manual_seed(3)
    first, z = signs(1, generator), signs(6, generator)
    # With the whole space in the first run nothing large is left, and with no settled vector nothing is taken out.
    found = positive_trace((lambda v: 0 * v, first), [(lambda v: v @ h, z)], 12, 1e-12, D)
    exact = float(torch.einsum("ni,ij,nj->n", z, positive, z).mean())
    assert found.lower <= exact <= found.upper


def test_a_matrix_of_low_rank_is_known_exactly():
    """Its large eigenvalues settle, and no probe sees anything else."""
    eigenvalues = torch.zeros(DIMENSION, dtype=D)
    eigenvalues[:3] = torch.tensor([4.0, 1.0, -2.0])
    found = estimate(matrix(eigenvalues), 0, 20)
    assert found.value == pytest.approx(5.0, rel=1e-8) and found.sem < 1e-8
    assert found.lower <= 5.0 <= found.upper


def test_a_negative_matrix_and_a_zero_one():
    for h in (-matrix(flat().abs()), torch.zeros(DIMENSION, DIMENSION, dtype=D)):
        found = estimate(h, 0, 10)
        assert 0 <= found.lower <= found.upper <= 1e-6 * DIMENSION or found.lower == 0.0
        assert isinstance(found, TraceBracket)
