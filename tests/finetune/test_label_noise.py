"""Label noise and its estimation."""

import numpy as np
import pytest

from genbound.errors import GenboundError
from genbound.finetune import anchor_points, dual_t, flip_labels, labels_from_predictions, symmetric_noise


def test_both_conventions_of_symmetric_noise():
    flipped, redrawn = symmetric_noise(0.4, 10), symmetric_noise(0.4, 10, redraw=True)
    np.testing.assert_allclose(flipped.diagonal(), 0.6)
    np.testing.assert_allclose(flipped[0, 1], 0.4 / 9)
    np.testing.assert_allclose(redrawn.diagonal(), 1 - 0.4 * 9 / 10)
    np.testing.assert_allclose(redrawn, symmetric_noise(0.4 * 9 / 10, 10))
    for matrix in (flipped, redrawn):
        np.testing.assert_allclose(matrix.sum(1), 1)


def test_flipped_labels_have_the_matrix_as_frequencies():
    confusion = np.array([[0.7, 0.1, 0.2], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    labels = np.repeat(np.arange(3), 40_000)
    noisy = flip_labels(labels, confusion, seed=3)
    for y in range(3):
        seen = np.bincount(noisy[labels == y], minlength=3) / 40_000
        assert (abs(seen - confusion[y]) <= 4 * np.sqrt(confusion[y] * (1 - confusion[y]) / 40_000)).all()
    assert (flip_labels(labels, confusion, seed=3) == noisy).all()
    assert (flip_labels(labels, confusion, seed=4) != noisy).any()
    assert (flip_labels(labels, np.eye(3)) == labels).all()


def test_labels_of_an_auxiliary_network():
    truth, predictions = np.arange(10) % 2, np.array([0, 1, 1, 0, 1, 1, 0, 0, 0, 1])
    assert (labels_from_predictions(truth, predictions) == predictions).all()
    half = labels_from_predictions(truth, predictions, rate=0.2, seed=1)
    wrong = half != truth
    assert wrong.sum() == 2 and (half[wrong] == predictions[wrong]).all()
    with pytest.raises(GenboundError, match="network makes 4"):
        labels_from_predictions(truth, predictions, rate=0.5)


def test_estimates_are_exact_where_their_assumptions_hold():
    # A network with the true noisy posterior, and anchors: the first samples of each class are pure.
    confusion = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.0, 0.2, 0.8]])
    clean = np.concatenate([np.repeat(np.eye(3), 10, axis=0), np.random.default_rng(0).dirichlet(np.ones(3), 200)])
    posterior = clean @ confusion
    np.testing.assert_allclose(anchor_points(posterior, percentile=100), confusion, atol=1e-12)
    # Clean predictions (posterior = clean classes): all noise is in the counts.
    labels = np.repeat(np.arange(3), 100)
    predicted = np.eye(3)[labels]
    observed = labels.copy()
    observed[:30] = 1
    expected = np.eye(3)
    expected[0] = [0.7, 0.3, 0.0]
    np.testing.assert_allclose(dual_t(predicted, observed), expected, atol=1e-12)


def test_which_estimate_suits_which_network():
    confusion, rng = symmetric_noise(0.4, 4), np.random.default_rng(1)
    truth = rng.integers(0, 4, 20_000)
    observed = flip_labels(truth, confusion, seed=2)

    def softmax(scores):
        return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)

    def error(estimate):
        np.testing.assert_allclose(estimate.sum(1), 1)
        return abs(estimate - confusion).max()

    scores = 3 * np.eye(4)[truth] + rng.normal(size=(20_000, 4))
    calibrated = softmax(scores) @ confusion  # the posterior of the observed label
    confident = softmax(
        20 * scores
    )  # predicts well and is always sure of itself, as networks trained on hard labels are
    assert error(anchor_points(calibrated)) < 0.1 < 0.2 < error(dual_t(calibrated, observed))
    assert error(dual_t(confident, observed)) < 0.1 < 0.2 < error(anchor_points(confident))


@pytest.mark.parametrize(
    "call",
    [
        lambda: symmetric_noise(1.2, 3),
        lambda: symmetric_noise(0.2, 1),
        lambda: flip_labels([0, 3], np.eye(3)),
        lambda: flip_labels([0.5], np.eye(3)),
        lambda: labels_from_predictions([0, 1], [0]),
        lambda: labels_from_predictions([0, 1], [0, 0], rate=float("nan")),
        lambda: labels_from_predictions([0, 1], [0, 0], rate=float("inf")),
        lambda: anchor_points([[0.4, 0.4]]),
        lambda: anchor_points(np.eye(2), percentile=0),
        lambda: dual_t(np.eye(2), [0, 2]),
    ],
)
def test_mistakes(call):
    with pytest.raises(GenboundError):
        call()
