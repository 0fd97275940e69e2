"""The best constant prediction's loss where the loss has a range, against a search over the simplex."""

import numpy as np
import pytest
from scipy.optimize import minimize

from genbound.network.loss_functions import CROSS_ENTROPY, ranged
from genbound.quantities.losses import _constant_loss


@pytest.mark.parametrize("spec", ["observed", "clip:0.3", "clip:1", "clip:2.5", "bounded:0.02", "bounded:0.2"])
@pytest.mark.parametrize(
    "p", [[0.92, 0.08, 0.0], [0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [1.0, 0.0, 0.0], [0.7, 0.29, 0.01]]
)
def test_no_distribution_has_a_smaller_loss(spec, p):
    loss, p = ranged(CROSS_ENTROPY, spec, 3), np.array(p)
    floor = np.exp(-loss.range) if spec.startswith("bounded") else 0.0

    def mean(z):
        q = np.exp(z - z.max())
        q = floor + (1 - 3 * floor) * q / q.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(p > 0, p * np.minimum(-np.log(q), loss.range), 0.0).sum())

    starts = [np.log(np.random.default_rng(i).dirichlet([0.3] * 3).clip(1e-9)) for i in range(40)]
    best = min(minimize(mean, z, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).fun for z in starts)
    found = _constant_loss(p, loss, 3)
    assert found == pytest.approx(best, abs=2e-4) and found <= best + 1e-9
