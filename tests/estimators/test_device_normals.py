"""Normals from counters: against the exact inverse, their law, and that nothing but the bits decides."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from seeded import rng

from genbound.estimators import random as numbers
from genbound.estimators.device_normals import _coefficients, normals_of
from genbound.estimators.random import BLOCK, generator, normal, row_normals, row_of

LIKE = torch.zeros(1)
TABLE = "9b4dd4e9eb42a748241fd2fbbd70fa35a7c8abec313d960dd05f1e27cf245793"
DRAWN = "bcf22c05d78630ac22351e2a70a82c8407b40513d2711c17176d1bfc94a75f4c"


def words_of(m):
    """Words of which both halves have these 31 bits and no sign."""
    m = np.asarray(m, dtype=np.int64)
    return torch.from_numpy(m | (m << 32))


def test_they_are_the_inverse_of_the_normal_law():
    random = rng(0)
    octaves = (random.integers(2**k, 2 ** (k + 1), 500) for k in range(31))
    m = np.unique(np.concatenate([np.arange(2000), *octaves, [2**30, 2**31 - 2, 2**31 - 1]]))
    found, exact = normals_of(words_of(m))[::2].double().numpy(), -norm.ppf((m + 0.5) * 2.0**-32)
    error = np.abs(found - exact)
    assert error[exact < 0.1].max() < 4e-8 and (error / exact)[exact >= 0.1].max() < 3.6e-7
    assert 6.3 < found.max() < 6.4 and found.min() == 0
    negative = normals_of(words_of(m) | (-(2**63)) | 2**31)
    assert np.array_equal(-negative[::2].double().numpy(), found) and torch.equal(negative[::2], negative[1::2])


def test_their_law_is_normal():
    z = normal((4_000_000,), generator(0, "law"), LIKE)
    device = normals_of(numbers.words_on(torch.tensor([7]), 2_000_000))[0].double()
    assert kstest(device[:500_000].numpy(), "norm").pvalue > 1e-3
    for power, spread in ((1, 1), (2, 2), (3, 15), (4, 96), (6, 10170)):
        expected = 0 if power % 2 else math.prod(range(1, power, 2))
        assert abs(float((device**power).mean()) - expected) < 4.5 * math.sqrt(spread / len(device)), power
    neighbours = (device[:-1] * device[1:]).mean(), (device[:-1] ** 2 * device[1:] ** 2).mean() - 1
    assert abs(float(neighbours[0])) < 4.5 / 2000 and abs(float(neighbours[1])) < 4.5 * math.sqrt(8) / 2000
    tail = float((device.abs() > 4).double().mean())
    assert tail == pytest.approx(2 * norm.sf(4), abs=4.5 * math.sqrt(2 * norm.sf(4) / len(device)))
    assert not torch.equal(z[:100].double(), device[:100])


def test_their_bits_are_known():
    """What every device has to give: if a machine's arithmetic is another one, this is where it shows."""
    assert hashlib.sha256(_coefficients().numpy().tobytes()).hexdigest() == TABLE
    drawn = normals_of(numbers.words_on(torch.tensor([0, 1, -5]), 50_000))
    assert hashlib.sha256(drawn.numpy().tobytes()).hexdigest() == DRAWN


def test_rows_on_a_device_do_not_depend_on_their_company(monkeypatch):
    monkeypatch.setattr(numbers, "is_host", lambda device: False)
    rows = [row_of("x", p, d, 50) for p in range(4) for d in range(BLOCK)]
    whole = row_normals(rows, 1, "layer", 3, 7, LIKE)
    assert whole.shape == (64, 3, 7) and len(whole.unique()) == whole.numel()
    assert torch.equal(row_normals(rows[9:3:-2], 1, "layer", 3, 7, LIKE), whole[[9, 7, 5]])
    assert torch.equal(row_normals(rows, 1, "layer", 5, 7, LIKE)[:, :3], whole)
    for other in (row_normals(rows, 2, "layer", 3, 7, LIKE), row_normals(rows, 1, "other", 3, 7, LIKE)):
        assert not (other == whole).any()


def test_a_stream_goes_on_with_other_numbers(monkeypatch):
    monkeypatch.setattr(numbers, "is_host", lambda device: False)
    stream, again = generator(0, "a"), generator(0, "a")
    first, second = (normal((3, 5), stream, LIKE.double()) for _ in range(2))
    assert first.shape == (3, 5) and first.dtype == torch.float64 and not (first == second).any()
    assert torch.equal(first, normal((3, 5), again, LIKE.double()))
