"""Numerics without learning theory: brackets, probes, stratified means, allocation."""

import numpy as np
import pytest
import torch

from genbound.curvature.probes import RANK, make_probe, num_signs
from genbound.estimators.allocation import allocate, choose_doubles, choose_pilot, expect, predict, shrink
from genbound.estimators.estimate import data_sem, stratified_mean, stratum_variances
from genbound.estimators.lanczos import Lanczos
from genbound.estimators.random import generator, normal, rademacher, row_of, row_signs
from genbound.estimators.trace_plan import BACKWARD, Sweeps, plan_probes

D = torch.float64


# -- the Lanczos bracket ------------------------------------------------------------------------------------------


def matrix(values, seed):
    """A symmetric matrix with these eigenvalues in a random basis, and the basis."""
    stream = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=D)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=D, generator=stream))
    return basis @ torch.diag(values) @ basis.T, basis


def exact(h, v):
    values, vectors = torch.linalg.eigh(h)
    return float(((v @ vectors) ** 2 * values.clamp(min=0)).sum())


def brackets(hs, vs, products, dtype=D):
    """Certified bracket of every row after every product, ``[products, rows, 2]``."""
    hs, vs = torch.stack(list(hs)).to(dtype), torch.stack(list(vs)).to(dtype)
    run = Lanczos(lambda x: (hs @ x.to(dtype).unsqueeze(2)).squeeze(2), vs)
    found = []
    for _ in range(products):
        run.step(1e-12 if dtype == D else 1e-6)
        found.append([run.certified(i, dtype) for i in range(len(vs))])
    return np.array(found)


def rng(seed):
    return np.random.default_rng(seed)


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


# -- probes -------------------------------------------------------------------------------------------------------


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


def test_variance_of_the_trace_probe_is_its_closed_form():
    """Var(z'Hz) = 2 (||H||_F^2 - sum_j H_jj^2) for independent signs."""
    h, _ = matrix(rng(0).normal(size=12), 1)
    z = rademacher((200_000, 12), generator(0, "closed form"), torch.zeros(1, dtype=D))
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    draws = ((z @ h) * z).sum(1)
    closed = 2 * float((h**2).sum() - (h.diagonal() ** 2).sum())
    assert abs(float(draws.mean() - h.trace())) < 4 * (closed / len(z)) ** 0.5
    assert float(draws.var()) == pytest.approx(closed, rel=0.03)


def test_streams():
    """Equal keys, equal numbers; a difference anywhere in the key, others; global generators are not used."""
    state = torch.get_rng_state()
    keys = [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a", 1, 0), (0, "a", "1")]
    draws = [torch.randint(0, 2**31, (8,), generator=generator(*key)) for key in keys]
    again = [torch.randint(0, 2**31, (8,), generator=generator(*key)) for key in keys]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    assert len({tuple(d.tolist()) for d in draws}) == len(keys)
    z = normal((100_000,), generator(0, "n"), torch.zeros(1, dtype=D))
    assert z.dtype == D and abs(float(z.mean())) < 0.015 and abs(float(z.var()) - 1) < 0.02
    assert torch.equal(state, torch.get_rng_state())


def test_signs_do_not_depend_on_which_samples_share_a_pass():
    """A block's signs are drawn whole, so the same sample meets the same probe in any batch."""
    like, rows = torch.zeros(1, dtype=D), [row_of("x", p, 0, 4) for p in range(16)]
    whole = row_signs(rows, 1, "layer", 3, 70, like)
    assert set(whole.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(row_signs([rows[7], rows[3]], 1, "layer", 3, 70, like), whole[[7, 3]])
    assert abs(float(rademacher((1000, 1000), generator(2, "x"), like).mean())) < 4e-3


# -- means and errors -----------------------------------------------------------------------------------------------


def test_stratified_mean_by_hand():
    """Strata {1, 3} and {10, 12, 14}: means 2 and 12; variances of the means 2/2 and 4/3."""
    counts, means, squares = np.array([2, 3]), np.array([2.0, 12.0]), np.array([2.0, 8.0])
    value, sem = stratified_mean(counts, means, stratum_variances(counts, squares))
    assert value == 7.0 and sem == pytest.approx(np.sqrt(1 + 4 / 3) / 2)


def test_stratified_mean_is_unbiased_and_its_error_right():
    r, truth, scale, counts = rng(0), rng(1).normal(size=6), rng(2).exponential(size=6), np.array([2, 3, 4, 8, 16, 2])
    found, errors = [], []
    for _ in range(4000):
        draws = [t + s * r.normal(size=c) for t, s, c in zip(truth, scale, counts, strict=True)]
        means = np.array([d.mean() for d in draws])
        squares = np.array([((d - d.mean()) ** 2).sum() for d in draws])
        value, sem = stratified_mean(counts, means, stratum_variances(counts, squares))
        found.append(value)
        errors.append(sem**2)
    expected = np.sqrt((scale**2 / counts).sum()) / 6
    assert np.std(found) == pytest.approx(expected, rel=0.05)
    assert np.mean(errors) == pytest.approx(expected**2, rel=0.05)
    assert abs(np.mean(found) - truth.mean()) < 4 * expected / np.sqrt(4000)


def test_a_single_draw_takes_its_variance_from_the_doubles():
    """Doubles {1, 3} and {2, 8}: variances 2 and 18, in the mean 10. A stratum of three draws keeps its own."""
    counts, doubles = np.array([1, 2, 2, 3]), np.array([False, True, True, False])
    found = stratum_variances(counts, np.array([0.0, 2.0, 18.0, 6.0]), doubles)
    assert found == pytest.approx([10.0, 2.0, 18.0, 3.0])


def test_error_with_single_draws_is_right_in_the_mean():
    """Strata whose spread grows with their size over four decades, most of them with one draw."""
    r, sizes = rng(0), np.exp(rng(1).uniform(-5, 5, size=400))
    counts = np.where(sizes > np.quantile(sizes, 0.9), 8, 1)
    doubles = choose_doubles(counts, sizes)
    assert counts[doubles].tolist() == [1] * doubles.sum() and 64 <= doubles.sum() <= 80
    counts = counts + doubles
    expected, found, errors = np.sqrt((sizes**2 / counts).sum()) / 400, [], []
    for _ in range(2000):
        draws = [s * r.normal(size=c) for s, c in zip(sizes, counts, strict=True)]
        squares = np.array([((d - d.mean()) ** 2).sum() for d in draws])
        value, sem = stratified_mean(
            counts, np.array([d.mean() for d in draws]), stratum_variances(counts, squares, doubles)
        )
        found.append(value)
        errors.append(sem**2)
    assert np.std(found) == pytest.approx(expected, rel=0.05)
    assert np.mean(errors) == pytest.approx(expected**2, rel=0.05)


def test_few_singles_all_get_a_second_draw():
    assert choose_doubles(np.array([1, 4, 1, 2]), np.ones(4)).tolist() == [True, False, True, False]
    assert not choose_doubles(np.array([2, 4]), np.ones(2)).any()


def test_data_sem_by_hand():
    """Values 1, 3 of 4: sample variance 2, over two samples 1, finite population 1 - 2/4."""
    values = np.array([[1.0], [3.0]])
    assert data_sem(values, np.zeros_like(values), 4) == pytest.approx([np.sqrt(0.5)])
    assert data_sem(values, np.ones_like(values), 4) == pytest.approx([np.sqrt(0.25)])
    assert data_sem(values, 5 * np.ones_like(values), 4) == [0.0]
    assert data_sem(values, np.zeros_like(values), 2) == [0.0]


def test_allocation():
    variances, targets = rng(0).exponential(size=(40, 3)) ** 3, np.array([0.05, 0.1, 0.2])
    counts = allocate(variances, targets, minimum=4, budget=10**6)
    reached = np.sqrt((variances / counts[:, None]).sum(0)) / 40
    assert (reached <= targets).all()
    assert reached.max() > 0  # and it is not wasteful, although it rounds up to powers of two
    assert (reached / targets).max() > 0.93
    assert counts.min() >= 4 and all(c & (c - 1) == 0 for c in counts.tolist())
    assert counts[variances.sum(1).argmax()] > counts[variances.sum(1).argmin()]


def test_allocation_scales_with_the_target():
    variances, minimum = rng(1).exponential(size=(30, 2)), 1
    a, b = (allocate(variances, np.full(2, t), minimum=minimum, budget=10**9).mean() for t in (0.01, 0.005))
    assert b == pytest.approx(4 * a, rel=0.05)


def test_allocation_keeps_to_its_budget():
    variances = rng(2).exponential(size=(50, 2)) ** 4
    for target in (1e-6, 0.05, 0.06, 0.07, 0.1):  # out of reach, within reach but for the rounding up, and affordable
        counts = allocate(variances, np.full(2, target), minimum=2, budget=32)
        assert counts.min() >= 2 and counts.mean() <= 32
    assert counts.mean() > 8 and np.array_equal(counts, allocate(variances, np.full(2, 0.1), minimum=2, budget=1e9))


@pytest.mark.parametrize("targets", [[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
def test_allocation_without_targets_or_spread(targets):
    assert (allocate(np.zeros((5, 2)), np.array(targets), minimum=4, budget=8) == 4).all()
    found = allocate(rng(0).exponential(size=(5, 2)), np.array(targets), minimum=4, budget=8)
    assert found.shape == (5,) and (found >= 4).all()


def _waste(variances, used):
    """Draws that an allocation in proportion to the square roots of ``used`` takes, of what the best one takes."""
    weight = np.maximum(np.sqrt(used), 0.1 * np.sqrt(used).mean())
    return (variances / weight).mean() * weight.mean() / np.sqrt(variances).mean() ** 2


@pytest.mark.parametrize("num", [2, 4])
def test_sizes_that_explain_the_spread_mend_a_short_pilot(num):
    generator = rng(5)
    sizes = generator.exponential(size=400) ** 2
    truth = (sizes * np.exp(0.2 * generator.normal(size=400)))[:, None] ** 2
    pilot = truth * generator.chisquare(num - 1, size=truth.shape) / (num - 1)
    assert _waste(truth, shrink(pilot, sizes[:, None] ** 2, num)) < 1.08
    assert _waste(truth, pilot) > 1.2


@pytest.mark.parametrize("num", [2, 4, 16])
def test_sizes_that_explain_nothing_do_little_harm(num):
    generator = rng(6)
    truth = generator.exponential(size=(400, 1)) ** 4
    pilot = truth * generator.chisquare(num - 1, size=truth.shape) / (num - 1)
    squares = generator.exponential(size=(400, 1)) ** 2
    expected = squares * truth.mean() / squares.mean()
    assert _waste(truth, shrink(pilot, expected, num)) < 1.06 * _waste(truth, pilot)


def test_shrinking_without_expectations_or_with_few_strata_is_none():
    variances, ones = rng(7).exponential(size=(20, 3)), np.ones((20, 3))
    assert (shrink(variances, 0 * ones, 4) == variances).all()
    assert (shrink(variances[:4], ones[:4], 4) == variances[:4]).all()
    assert shrink(0 * ones, 0 * ones, 4).max() == 0


def test_a_stratum_is_expected_to_be_as_those_that_resemble_it():
    generator = rng(8)
    sizes = generator.lognormal(sigma=1.5, size=300)
    truth = np.stack([sizes**2, 5 * sizes**2.5], 1)
    assert expect(sizes, truth[:, :1]) == pytest.approx(truth[:, :1], rel=1e-10)
    found = expect(sizes, truth * generator.chisquare(1, size=truth.shape))
    assert np.median(np.abs(np.log(found / truth))) < 0.35  # 24 draws of one degree of freedom each
    # Its own values do not count, those of its neighbours do.
    other = truth.copy()
    other[7] *= 1e6
    change = expect(sizes, other) != expect(sizes, truth)
    assert not change[7].any() and 12 <= change[:, 0].sum() <= 24
    assert (expect(np.zeros(5), np.ones((5, 1))) == 1).all()
    assert (expect(np.ones(1), np.full((1, 2), 3.0)) == 3).all()
    assert (expect(np.ones(2), np.array([[3.0], [4.0]])) == [[4.0], [3.0]]).all()


def test_a_small_budget_leaves_every_stratum_its_minimum():
    counts = allocate(np.array([[1.0], [1e8], [1e-8]]), np.array([1e-9]), minimum=2, budget=4)
    assert counts.min() == 2 and counts[1] > 2 and counts.mean() <= 4


def test_a_pilot_visits_the_largest_and_some_of_the_others():
    sizes = rng(0).exponential(size=1000)
    chosen, large = choose_pilot(sizes, 96)
    assert len(chosen) <= 96 and chosen == sorted(set(chosen)) and set(large) <= set(chosen)
    # Coarsely: sizes within a quarter of an octave count as equal.
    assert sizes[large].min() >= 0.8 * np.sort(sizes)[-32]
    assert choose_pilot(sizes * (1 + 1e-7), 96) == (chosen, large)
    assert choose_pilot(sizes[:50], 96)[0] == list(range(50))


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0, 2.0])
def test_spread_beyond_the_pilot_is_a_power_of_the_size(power):
    """Sizes over five decades; 0 is a spread that they say nothing of."""
    generator, num = rng(1), 4
    sizes = generator.lognormal(sigma=2, size=2000)
    truth = np.stack([9 * sizes**power, sizes ** (2 - power)], 1)
    piloted, _ = choose_pilot(sizes, 128)
    pilot = truth[piloted] * generator.chisquare(num - 1, size=(len(piloted), 2)) / (num - 1)
    found = predict(pilot, np.array(piloted), sizes, num)
    for column in (slice(0, 1), slice(1, 2)):
        assert _waste(truth[:, column], found[:, column]) < 1.1
        beyond = np.setdiff1d(np.arange(2000), piloted)
        assert found[beyond, column].sum() == pytest.approx(truth[beyond, column].sum(), rel=0.25)


def test_a_pilot_without_spread_expects_none():
    assert predict(np.zeros((3, 1)), np.arange(3), np.array([1.0, 2.0, 0.0, 5.0]), 2).tolist() == [[0.0]] * 4


def test_costly_draws_are_fewer():
    variances, costs = np.ones((64, 1)), np.repeat([1.0, 16.0], 32)
    counts = allocate(variances, np.array([0.02]), minimum=2, budget=1e9, costs=costs)
    assert (counts[:32] == 4 * counts[32:]).all()
    assert (1 / counts).sum() / 64**2 <= 0.02**2


# -- which probes -------------------------------------------------------------------------------------------------


JOINT_RATIO = 0.7


def probes(layer_target, total_target, ratio=0.05, cost=20.0, budget=1e9):
    """A hundred samples, ten of them hard, eight layers whose joint probes have mostly cross-layer noise."""
    spread = np.where(np.arange(100) < 10, 100.0, 1.0)[:, None]
    variances = np.concatenate([np.ones((1, 8)), [[8.0]]], 1) * spread**2
    targets = np.append(np.full(8, layer_target), total_target)
    sweeps = None if ratio is None else Sweeps(lambda: (np.full(8, ratio), cost), lambda: JOINT_RATIO)
    return variances, targets, plan_probes(variances, targets, 2, budget, sweeps)


def test_hard_samples_are_swept_layer_by_layer():
    variances, targets, plan = probes(0.2, 1e9)
    assert plan.separate[:10].all() and not plan.separate[10:].any() and not plan.joint.any()
    each = variances[:, 0] * np.where(plan.separate, 0.05, 1.0) / plan.counts
    assert np.sqrt(each.sum()) / 100 <= targets[0]
    assert not probes(0.2, 1e9, ratio=0.5)[2].separate.any()  # where that saves nothing
    assert not probes(0.2, 1e9, ratio=None)[2].separate.any()  # and where there are no sweeps


@pytest.mark.parametrize("budget", [4, 8, 16, 64])
def test_separate_sweeps_for_some_are_no_worse_than_for_none_or_all(budget):
    """Within the same budget; the sizes of the samples span four decades."""
    spread = rng(4).lognormal(sigma=1.5, size=(400, 1))
    variances = np.concatenate([np.ones((1, 8)), [[8.0]]], 1) * spread**2
    targets, ratio, cost = np.append(np.full(8, 1e-3), 0.0), 0.05, 20.0

    def error(counts, separate):
        assert (np.where(separate, cost / BACKWARD, 1.0) * counts).mean() <= budget
        return (variances[:, 0] * np.where(separate, ratio, 1.0) / counts).sum()

    plan = plan_probes(variances, targets, 2, budget, Sweeps(lambda: (np.full(8, ratio), cost), lambda: 1.0))
    mixed, every = error(plan.counts, plan.separate), np.ones(400, bool)
    one = {"minimum": 2, "budget": budget}
    assert mixed <= 1.02 * error(allocate(variances[:, :-1], targets[:-1], **one), ~every)
    alone = allocate(ratio * variances[:, :-1], targets[:-1], **one, costs=np.full(400, cost / BACKWARD))
    if budget > 2.5 * cost / BACKWARD:  # what two sweeps of all take
        assert mixed <= 1.02 * error(alone, every)


def test_what_the_total_lacks_is_swept_jointly():
    variances, targets, plan = probes(1e9, 0.2)
    assert (plan.counts == 2).all() and plan.joint[:10].min() > plan.joint[10:].max()
    # The mean of both with these weights, for the samples where there are both.
    w, joint = plan.weight, np.maximum(plan.joint, 1)
    each = variances[:, -1] * (JOINT_RATIO * w**2 / joint + (1 - w) ** 2 / plan.counts)
    assert 0.8 * targets[-1] < np.sqrt(each.sum()) / 100 <= 1.0001 * targets[-1]
    assert plan.shares.sum() == pytest.approx(1)
    assert not probes(1e9, 0.2, ratio=None)[2].joint.any()
    assert probes(1e9, 0.2, budget=4)[2].joint.mean() <= 4 * 3.5 / 1.3
    assert plan.passes() == pytest.approx(3.5 * 2 + 1.3 * plan.joint.mean())
    # With a single curved layer the mean of its own noise is all there is: a joint sweep has no spread.
    exact = plan_probes(variances, targets, 2, 1e9, Sweeps(None, lambda: 0.0))
    assert (exact.joint[:10] >= 2).all() and exact.joint.sum() < plan.joint.sum()
    for column in (-1, slice(None)):  # of the sum alone, and of everything
        variances[5, column] = 0
        plan = plan_probes(variances, targets, 2, 1000, Sweeps(None, lambda: 0.5))
        assert not plan.joint[5] and not plan.weight[5]
