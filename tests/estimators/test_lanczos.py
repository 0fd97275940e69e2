"""The Lanczos bracket of a positive part: it holds the truth, tightens and closes."""

import numpy as np
import pytest
import torch
from seeded import D, matrix, rng

from genbound.estimators.lanczos import Lanczos


def exact(h, v):
    values, vectors = torch.linalg.eigh(h)
    return float(((v @ vectors) ** 2 * values.clamp(min=0)).sum())


def brackets(hs, vs, products, dtype=D, keep=None):
    """Certified bracket of every row after every product, ``[products, rows, 2]``."""
    hs, vs = torch.stack(list(hs)).to(dtype), torch.stack(list(vs)).to(dtype)
    run = Lanczos(lambda x: (hs @ x.to(dtype).unsqueeze(2)).squeeze(2), vs, keep)
    found = []
    for _ in range(products):
        run.step(1e-12 if dtype == D else 1e-6)
        found.append([run.certified(i, dtype) for i in range(len(vs))])
    return np.array(found)


SPECTRA = {
    "gaussian": lambda r: r.normal(size=40),
    "positive": lambda r: r.exponential(size=40),
    "negative": lambda r: -r.exponential(size=40),
    "rank_10": lambda r: np.concatenate([r.normal(size=10), np.zeros(290)]),
    "rank_one": lambda r: np.concatenate([r.normal(size=1), np.zeros(20)]),
    "fast_decay": lambda r: np.sign(r.normal(size=30)) * 10.0 ** -np.arange(30),
    "slow_decay": lambda r: np.sign(r.normal(size=40)) / np.arange(1, 41) ** 2,
    "few_values": lambda r: r.choice([-2.0, 0.0, 1.0, 5.0], size=40),
    "symmetric": lambda r: np.concatenate([a := r.exponential(size=15), -a]),
    "outlier": lambda r: np.concatenate([r.normal(size=30) * 1e-3, [50.0]]),
    "outlier_below": lambda r: np.concatenate([r.normal(size=30) * 1e-3, [-50.0]]),
    "tiny": lambda r: 1e-30 * r.normal(size=20),
    "huge": lambda r: 1e30 * r.normal(size=20),
    "dimension_1": lambda r: r.normal(size=1),
    "dimension_2": lambda r: r.normal(size=2),
}


def ensemble(name, num=8):
    pairs = []
    for seed in range(num):
        r = rng(seed)
        h, basis = matrix(SPECTRA[name](r), seed)
        v = torch.as_tensor(r.normal(size=len(h)))
        if seed % 3 == 1:  # weight on the eigenvectors falls by orders of magnitude
            v = basis @ torch.as_tensor(r.normal(size=len(h)) * 10.0 ** r.uniform(-8, 0, size=len(h)))
        if seed % 3 == 2:  # a start vector that few eigenvectors see
            v = basis[:, : max(1, len(h) // 8)] @ torch.as_tensor(r.normal(size=max(1, len(h) // 8)))
        pairs.append((h, v))
    return pairs


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SPECTRA)
def test_bracket_contains_the_truth_after_every_product(name, dtype):
    if dtype != D and name in ("tiny", "huge"):
        pytest.skip("its squares are beyond float32")
    pairs = [(0.5 * (h + h.mT), v) for h, v in ensemble(name)]
    pairs = [(h.to(dtype).double(), v.to(dtype).double()) for h, v in pairs]  # the truth about what is handed in
    if dtype != D:  # one product does not show that H is a million times larger than it is along v
        pairs = [(h, v) for h, v in pairs if (h @ v).norm() > 1e-4 * torch.linalg.norm(h, 2) * v.norm()]
    truth = np.array([exact(h, v) for h, v in pairs])
    hs, vs = zip(*pairs, strict=True)
    found = brackets(hs, vs, min(24, len(hs[0]) + 2), dtype)
    size = np.array([float(v.norm() * (h @ v).norm()) for h, v in pairs])
    assert (found[..., 0] <= truth + 1e-14 * size).all(), ((found[..., 0] - truth) / size).max()
    assert (found[..., 1] >= truth - 1e-14 * size).all(), ((truth - found[..., 1]) / size).max()


WIDE = {
    "two_sided_decay": lambda r: np.concatenate(
        [10.0 ** np.linspace(4, -2, 100), -(10.0 ** np.linspace(3.5, -2, 100))]
    ),
    "outliers": lambda r: np.concatenate([[1000.0, -800.0, 500.0], r.normal(size=197)]),
    "cluster": lambda r: np.concatenate([np.linspace(900, 1000, 20), 1e-3 * r.normal(size=180)]),
    "gaussian": lambda r: r.normal(size=200),
}


@pytest.mark.parametrize("dtype", [D, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", WIDE)
def test_bracket_holds_the_truth_where_few_vectors_are_kept(name, dtype):
    """Orthogonality is lost there: copies of the large eigenvalues appear, and the brackets are hardly wider."""
    r = rng(0)
    h = 0.5 * ((found := matrix(WIDE[name](r), 0)[0]) + found.mT)
    vs = [torch.as_tensor(r.normal(size=200)), h @ torch.as_tensor(r.normal(size=200))]
    h, vs = h.to(dtype).double(), [v.to(dtype).double() for v in vs]
    truth = np.array([exact(h, v) for v in vs])
    every = brackets([h, h], vs, 120, dtype)
    for keep in (1, 8, 40):
        few = brackets([h, h], vs, 120, dtype, keep)
        assert (few[..., 0] <= truth).all() and (few[..., 1] >= truth).all()
        assert (few[-1, :, 1] - few[-1, :, 0] <= (every[-1, :, 1] - every[-1, :, 0]) + 0.02 * truth).all()
        np.testing.assert_array_equal(few[: max(keep, 4)], every[: max(keep, 4)])


def test_no_more_vectors_are_kept_than_have_room():
    h = matrix(np.linspace(-1, 1, 64), 0)[0]
    run = Lanczos(lambda x: x @ h, torch.ones(2, 64, dtype=D), keep=21)
    sizes = []
    for _ in range(60):
        run.step(1e-12)
        sizes.append(sum(block.shape[1] for block in run._blocks))
    assert max(sizes) == 21 and sizes[0] == 16
    kept = torch.cat([block[0] for block in run._blocks])
    assert float((kept @ kept.mT - torch.eye(21, dtype=D)).abs().max()) < 1e-12
    fewer = run.select([1], lambda x: x @ h)
    assert not run._blocks and sum(block.shape[1] for block in fewer._blocks) == 21
    fewer.step(1e-12)
    assert fewer.num_products == 61


@pytest.mark.parametrize("name", SPECTRA)
def test_bracket_tightens_monotonically(name):
    hs, vs = zip(*ensemble(name), strict=True)
    found = brackets(hs, vs, min(20, len(hs[0]) + 2))
    size = np.array([float(v.norm() * (h @ v).norm()) for h, v in zip(hs, vs, strict=True)])
    assert (np.diff(found[..., 0], axis=0) >= -3e-8 * size).all()
    assert (np.diff(found[..., 1], axis=0) <= 3e-8 * size).all()


def test_bracket_closes():
    hs, vs = zip(*ensemble("rank_10"), strict=True)
    found = brackets(hs, vs, 24)
    truth = np.array([exact(h, v) for h, v in zip(hs, vs, strict=True)])
    first, last = found[0, :, 1] - found[0, :, 0], found[-1, :, 1] - found[-1, :, 0]
    assert (first > 0.05 * truth).any()
    assert (last <= 1e-8 * np.maximum(truth, 1)).all()


def test_one_and_two_products_by_hand():
    """H = diag(2, -1), v = (1, 1): v'Hv = 1, ||v|| ||Hv|| = sqrt(10), ||Hv||^3 / ||H^2 v|| = 5^1.5 / sqrt(17)."""
    h, v = torch.diag(torch.tensor([2.0, -1.0], dtype=D)), torch.ones(1, 2, dtype=D)
    run = Lanczos(lambda x: x @ h, v)
    run.step(1e-12)
    assert run.bracket(0) == pytest.approx((1.0, 0.5 * (1 + 10**0.5)), rel=1e-12)
    run.step(1e-12)  # the space is exhausted: exact, 2 * 1
    assert run.ended(0) and run.bracket(0) == pytest.approx((2.0, 2.0), rel=1e-12)
    h = torch.diag(torch.tensor([2.0, -1.0, 0.5], dtype=D))
    run = Lanczos(lambda x: x @ h, torch.ones(1, 3, dtype=D))
    for _ in range(2):
        run.step(1e-12)
    # v'Hv = 1.5; ||Hv||^2 = 5.25; ||H^2 v||^2 = 16 + 1 + 1/16; exact 2.5. No wider than the rules with one node.
    lower, upper = 0.5 * (1.5 + 5.25**1.5 / (17 + 1 / 16) ** 0.5), 0.5 * (1.5 + (3 * 5.25) ** 0.5)
    low, high = run.bracket(0)
    assert lower - 1e-12 <= low <= 2.5 <= high <= upper + 1e-12


def test_plain_quadrature_would_not_do():
    """Quadrature of max(x, 0) on H itself falls on both sides: the bracket is not a luxury."""
    below = above = 0
    for h, v in ensemble("gaussian", 12):
        run = Lanczos(lambda x, h=h: x @ h, v.unsqueeze(0))
        for _ in range(3):
            run.step(1e-12)
        below += run.positive_part(0) < exact(h, v)
        above += run.positive_part(0) > exact(h, v)
    assert below and above


def test_zero_vectors_and_zero_operators_beside_others():
    h, _ = matrix(rng(0).normal(size=12), 0)
    v = torch.as_tensor(rng(1).normal(size=12))
    hs, vs = [h, torch.zeros_like(h), h], [torch.zeros_like(v), v, v]
    found = brackets(hs, vs, 6)
    assert (found[:, :2] == 0).all() and np.isfinite(found).all()
    alone = brackets([h], [v], 6)
    np.testing.assert_allclose(found[:, 2], alone[:, 0], rtol=1e-12)


def test_small_eigenvalues_under_a_large_one():
    """Eigenvalues of H^2 below rounding: their square roots must not be lost from the upper side."""
    for ratio in (1e-6, 1e-7, 1e-8, 3e-9, 1e-9):
        for weight in (1e-2, 1e-4, 1e-6, 1e-8):
            values = np.concatenate([[1.0], ratio * np.linspace(0.5, 1.5, 9) * rng(3).choice([-1, 1], 9)])
            h, basis = matrix(values, 5)
            v = basis @ torch.as_tensor(np.concatenate([[weight], np.ones(9)]))
            truth = float((torch.as_tensor(np.concatenate([[weight], np.ones(9)]) ** 2 * values.clip(0))).sum())
            found = brackets([h], [v], 10)[:, 0]
            # H itself, formed in float64, holds its small eigenvalues to 1e-16 only.
            slack = 1e-15 * float(v @ v)
            assert (found[:, 1] >= truth - slack).all(), (ratio, weight, found[:, 1] / truth)
            assert (found[:, 0] <= truth + slack).all(), (ratio, weight, found[:, 0] / truth)
