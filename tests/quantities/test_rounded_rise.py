"""A flat loss in single precision: what the loss without noise is rounded by is in no rise, or in its error."""

import numpy as np
import pytest
import torch
from torch import nn

import genbound


@pytest.mark.parametrize("seed", range(2))
def test_a_flat_loss_in_single_precision(seed):
    """Without care the smallest sigmas were some forty errors off, and called not quadratic."""
    torch.manual_seed(seed)
    x, y = 0.1 * torch.randn(20, 4), torch.randint(0, 3, (20,))
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3))
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    found, exact = (
        genbound.evaluate(genbound.Problem(model, init, (x, y), dtype=dtype), "noise_stability").quantities
        for dtype in (None, torch.float64)
    )
    found, exact = (quantities["noise_stability"] for quantities in (found, exact))
    assert found["leaves_quadratic_regime_at"] is exact["leaves_quadratic_regime_at"] is None
    for row, right in zip(found["sigmas"], exact["sigmas"], strict=True):
        assert row["value"] == pytest.approx(right["value"], abs=4 * np.hypot(row["sem"], right["sem"]))
