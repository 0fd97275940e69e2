"""Probes of a layer: identity covariance, and low rank where the weight is large."""

import pytest
import torch
from cases import D

from genbound.curvature.probes import RANK, make_probe, num_signs
from genbound.estimators.random import generator, rademacher


@pytest.mark.parametrize("shape", [(4, 3), (5, 2, 2, 1), (40, 60)])
def test_probes_have_identity_covariance(shape):
    num, like = 20000 if shape[0] < 40 else 4000, torch.zeros(1, dtype=D)
    probe = make_probe(shape, rademacher((num, num_signs(shape)), generator(0, "test"), like))
    assert (probe.full is None) == (shape == (40, 60))
    z = probe.weight().flatten(1)
    if shape == (40, 60):
        z = z[:, torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(0))[:40]]
    covariance = z.T @ z / num
    # entries of zz' have variance at most 1 + 2/s off the diagonal for rank-s probes
    assert float((covariance - torch.eye(len(covariance), dtype=D)).abs().max()) < 6.0 * (3 / num) ** 0.5
    assert float(z.mean(0).abs().max()) < 5.5 / num**0.5


def test_low_rank_probe_acts_as_its_weight():
    like = torch.zeros(1, dtype=D)
    probe = make_probe((40, 60), rademacher((3, num_signs((40, 60))), generator(0, "test"), like))
    assert torch.linalg.matrix_rank(probe.weight()).tolist() == [RANK] * 3
