"""Noise norms against samples, and the grid of standard deviations."""

import math

import numpy as np
import pytest
from fixtures import evidence, net

from genbound.bounds.base import NotAvailable
from genbound.bounds.gaussian_noise import (
    _first,
    bias_noise,
    convolution_norm,
    dense_norm,
    entropy,
    grid_term,
    margin_stable_bound,
    noise_norms,
    prior_scales,
)
from genbound.bounds.li2021improved import LI2021
from genbound.bounds.logs import log
from genbound.bounds.neyshabur2018pacbayes import NEYSHABUR2018
from genbound.bounds.reading import norms


@pytest.mark.parametrize("shape", [(5, 5), (40, 10), (1, 30)])
@pytest.mark.parametrize("failure", [0.5, 0.1])
def test_dense(shape, failure):
    rng = np.random.default_rng(0)
    found = np.linalg.norm(rng.normal(size=(400, *shape)), 2, axis=(1, 2))
    tau = dense_norm(shape[1], shape[0], 1, failure)
    assert (found > tau).mean() <= failure and found.max() > 0.4 * tau


@pytest.mark.parametrize(
    ("kernel", "inputs", "outputs", "sides"),
    [
        ((3, 3), 1, 1, (4, 4)), ((3, 3), 4, 8, (6, 6)), ((5, 5), 2, 2, (8, 8)),
        ((5,), 16, 16, (12,)), ((2, 5), 4, 4, (3, 9)), ((5, 5, 5), 32, 32, (3, 3, 3)),
    ],
)  # fmt: skip
def test_convolution(kernel, inputs, outputs, sides):
    """Largest singular value of the circular operator on the padded map: an upper bound of the zero-padded one's."""
    rng = np.random.default_rng(0)
    padded, failure = [n + k - 1 for n, k in zip(sides, kernel, strict=True)], 0.1
    tau = convolution_norm(math.prod(kernel), inputs, outputs, math.prod(padded), 1, failure)
    found = []
    for _ in range(100 if len(kernel) < 3 else 10):
        noise = rng.normal(size=(outputs, inputs, *kernel))
        blocks = np.fft.fftn(noise, s=padded, axes=range(2, noise.ndim)).reshape(outputs, inputs, -1)
        found.append(np.linalg.norm(blocks.transpose(2, 0, 1), 2, axis=(1, 2)).max())
    assert (np.array(found) > tau).mean() <= failure and max(found) > 0.3 * tau


def test_noise_of_a_kernel_along_three_axes():
    """(sqrt 2 (8 + 8) + sqrt(2 ln(7^3 / .1))) sqrt 125: k^1.5, not k, which unit noise exceeds in every draw."""
    given = evidence({"c": (np.ones((64, 64)), np.zeros((64, 64)))})
    given.quantities["layer_norms"]["layers"]["c"] |= {"kernel_side": 5, "kernel_taps": 125, "frequencies": 343}
    expected = 125**0.5 * (2**0.5 * 16 + math.sqrt(2 * math.log(3430)))
    assert 10 ** noise_norms(given, 0.1, 1)["c"] == pytest.approx(expected)


def test_grid_term():
    """K = 10, eta = .5: h = ln 2: (2 (10 + ln 2) + ln(20 * 3 * 2 / .05)) / 200 under the root."""
    assert entropy(0.5) == pytest.approx(math.log(2))
    expected = math.sqrt((2 * (10 + math.log(2)) + math.log(2400)) / 200)
    assert 10 ** grid_term(1.0, 0.5, 0, 100, 0.05) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("threshold", [0, 1, 2, 3, 17, 1000])
def test_first(threshold):
    assert _first(lambda j: j >= threshold) == threshold


def test_nothing_is_small_enough():
    with pytest.raises(NotAvailable, match="no noise"):
        _first(lambda j: False)


def test_a_zero_head_gets_noise_of_its_own():
    """The pretrained head may be zero: its scale is then 1, not 0 with an infinite divergence."""
    given = net()
    given.quantities["spectral_norm"]["layers"]["2"]["init"] = {"lower": 0.0, "upper": 0.0}
    found = margin_stable_bound(given, log(0.25), norms(given, "frobenius", "displacement"))
    assert math.isfinite(found)


def rigorous(given):
    return 10 ** margin_stable_bound(given, log(0.25), norms(given, "frobenius", "displacement"))


def test_noise_of_a_moved_bias():
    """Pretrained biases .3, inputs of norm 1: A0 is 1 before layer 1 and 1 * s1 + .3 before layer 2; one position."""
    given = net(bias=0.6)
    scales = prior_scales(given)
    found = bias_noise(given, scales, 0.0)
    first, second = (10 ** scales[name] for name in "12")
    assert 10 ** found.scales["1"] == pytest.approx(first)
    assert 10 ** found.scales["2"] == pytest.approx(second * (first + 0.3))
    norm = found.norms(given, 0.1, 4)["2"]
    expected = second * (first + 0.3) * (math.sqrt(2) + math.sqrt(2 * math.log(40)))
    assert 10**norm == pytest.approx(expected)
    assert 10 ** (0.5 * found.squares()[0]) == pytest.approx(0.3 / first)


def test_a_bias_that_stayed_has_no_noise():
    """It costs through the size of the activations alone: less than one that moved, more than none."""
    stayed = net(bias=0.6)
    for row in stayed.quantities["layer_norms"]["layers"].values():
        row["displacement_bias_vector_norm"] = 0.0
    assert not bias_noise(stayed, prior_scales(stayed), 0.0).scales
    assert rigorous(net()) < rigorous(stayed) < rigorous(net(bias=0.6))
    moved = net(bias=0.6)
    for row in moved.quantities["layer_norms"]["layers"].values():
        row["displacement_bias_vector_norm"] = 3.0
    assert rigorous(moved) > rigorous(net(bias=0.6))


@pytest.mark.parametrize("what", ["learned factor", "PReLU", "unfolded batch norm"])
def test_learned_steps_are_refused(what):
    """No displacement of a layer knows how they moved."""
    given = net()
    given.quantities["structure"]["tree"]["children"].insert(1, {"op": "scale", "lipschitz": 1.0, "what": what})
    for bound, form in ((NEYSHABUR2018, "init_rigorous"), (LI2021, "tight"), (NEYSHABUR2018, "paper")):
        row = bound.evaluate(given)
        assert row["value"] > 0 and "learned step" in row["note"]
        assert row["forms"][form]["log10"] is None and "learned step" in row["forms"][form]["note"]
