"""How far draws spread by what their products tell: right in the mean, and not hidden where one sample rules."""

import numpy as np
import pytest
from seeded import rng

from genbound.estimators.draw_spread import RULES, Bounds
from genbound.estimators.estimate import Sampled


def ruled(num=60, size=13, seed=0):
    """Matrices ``[num, size, size]``: one of rank one along two coordinates, and smaller ones of full rank."""
    stream = rng(seed)
    others = stream.normal(size=(num, size, size)) * 0.02
    found = others + others.transpose(0, 2, 1)
    u = np.array([0.8, 0.6] + [0.0] * (size - 2))
    found[0] = 6 * np.outer(u, u)
    return found


def probed(matrices, draws, stream):
    """Draws, their bounds with the further product of those that may rule, by matrices as one layer of each sample."""
    z = stream.choice([-1.0, 1.0], size=(len(matrices), draws, matrices.shape[1]))
    q = z @ matrices
    own = z * q
    diagonal = ((own.sum(1) ** 2 - (own**2).sum(1)) / (draws * (draws - 1))).sum(1)
    bounds = Bounds.of((q**2).sum(-1)[..., None], diagonal[:, None])
    rows = np.flatnonzero(bounds.ruling)
    v = np.stack([q[s, (q[s] ** 2).sum(-1).argmax()] for s in rows])
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    further = np.einsum("sij,sj->si", matrices[rows], v)
    return own.sum(-1), bounds.raised((further**2 - (v * further) ** 2).sum(1)[:, None])


def stated(draws, bounds=None):
    """The mean over the samples of their draws, and its error; by the draws' own spread alone without bounds."""
    num, each = draws.shape
    squares = draws.var(1, ddof=1)[:, None] * (each - 1)
    variances, freedom = squares / (each - 1), np.full((num, 1), each - 1.0)
    if bounds is not None:
        variances, freedom = bounds.variances(np.full(num, each), squares, np.arange(num))
    noise = variances / each
    return Sampled.of(draws.mean(1, keepdims=True), noise, (noise**2 / freedom).sum(0))


@pytest.mark.parametrize("draws", [3, 4])
def test_an_error_that_one_sample_rules_is_not_hidden_by_the_others(draws):
    """Of a matrix of rank one along two coordinates, half of the draws are a fiftieth of the others."""
    matrices, stream = ruled(), rng(1)
    truth = np.trace(matrices, axis1=1, axis2=2).mean()
    z = {True: [], False: []}
    for _ in range(1000):
        values, bounds = probed(matrices, draws, stream)
        for told in z:
            found = stated(values, bounds if told else None)
            z[told].append(abs(found.value[0] - truth) / found.widened[0])
    covered = {told: np.mean(np.array(each) <= 2) for told, each in z.items()}
    print(draws, covered, max(z[True]), max(z[False]))
    assert 0.94 <= covered[True] <= 0.995 and max(z[True]) < 4.5
    assert covered[False] < 0.91 and max(z[False]) > 5  # by the spread of the draws alone


def test_bounds_are_the_variance_in_the_mean():
    matrices, stream = ruled(20), rng(2)
    off = matrices * (1 - np.eye(matrices.shape[1]))
    expected = 2 * (off**2).sum((1, 2))
    found = np.mean([probed(matrices, 4, stream)[1].values for _ in range(2000)], 0)
    assert found[1:, 0] == pytest.approx(expected[1:], rel=0.1)  # but for the floor where the diagonal was overrated
    assert found[:, 1] == pytest.approx(found[:, 0])
    assert expected[0] <= 1.001 * found[0, 0] <= 1.7 * expected[0]  # the largest of two, one of them exact


def test_samples_that_may_rule_are_few():
    squares = rng(3).exponential(size=(300, 2, 4))
    assert not Bounds.of(squares, np.zeros((300, 4))).ruling.any()
    squares[7] *= 100
    bounds = Bounds.of(squares, np.zeros((300, 4)))
    assert np.flatnonzero(bounds.ruling).tolist() == [7] and RULES * 300 > 1
    raised = bounds.raised(np.full((1, 4), 1e6))
    assert (raised.values[7] == [2e6] * 4 + [8e6]).all()
    assert (np.delete(raised.values, 7, 0) == np.delete(bounds.values, 7, 0)).all()


def test_draws_that_never_spread_have_no_error():
    """Signs on a diagonal matrix."""
    draws = np.repeat(rng(4).normal(size=(9, 1)), 3, 1)
    bounds = Bounds(np.ones((9, 2)), 3, np.arange(9) < 2)
    assert not stated(draws, bounds).sem.any()


def test_a_sample_alone_is_known_from_its_draws():
    bounds = Bounds(np.array([[5.0, 5.0]]), 2, np.array([True]))
    variances, freedom = bounds.variances(np.array([11]), np.array([[20.0]]), np.array([0]))
    assert variances == pytest.approx(np.array([[2.0]])) and freedom == pytest.approx(np.array([[5.0]]))


def test_a_sample_without_others_has_no_freedom_from_its_products():
    """They tell how far draws may spread, and no other sample which part of that they do."""
    alone = Bounds(np.array([[3.0, 3.0]]), 3, np.array([True]))
    variances, freedom = alone.variances(np.array([2]), np.array([[0.5, 0.5]]), np.array([0]))
    assert variances == pytest.approx(0.5) and freedom.tolist() == [[1.0, 1.0]]
    two = Bounds(np.full((2, 2), 3.0), 3, np.array([True, True]))
    assert (two.variances(np.array([2, 2]), np.full((2, 2), 0.5), np.array([0, 1]))[1] == 3.0).all()
