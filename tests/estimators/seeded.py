"""Random matrices and numbers of a seed."""

import numpy as np
import torch

D = torch.float64


def matrix(values, seed):
    """A symmetric matrix with these eigenvalues in a random basis, and the basis."""
    stream = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=D)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=D, generator=stream))
    return basis @ torch.diag(values) @ basis.T, basis


def rng(seed):
    return np.random.default_rng(seed)
