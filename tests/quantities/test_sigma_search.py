"""The search for the sigma at which a mean rise meets a target, on rises that are formulas."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from genbound.quantities.sigma_search import Asked, Start, Wanted, search

WANTED = Wanted(target=0.1, tolerance=0.05, num_coarse=4, num_draws=12)


def searched(rise, start=1.0, wanted=WANTED, floor=""):
    """What is found where ``rise(sigma, draw)`` is the rise of a draw, and how many draws it took."""
    running, answer, num, known = search(wanted, Start(start, floor)), None, 0, []
    while True:
        try:
            asked = running.send(answer)
        except StopIteration as ended:
            return ended.value, num
        assert isinstance(asked, Asked) and 0 <= asked.first < asked.last <= wanted.num_draws
        assert asked not in known  # no draw of few steps is made again
        known.append(asked)
        answer = np.array([rise(asked.sigma, draw) for draw in range(asked.first, asked.last)])
        num += len(answer)


def scattered(seed, power):
    """Rises of groups of 64 samples in draws of different strength, and the mean rise of all."""
    rng, spread = np.random.default_rng(seed), 0.7
    strengths, ranks = np.exp(spread * rng.standard_normal(12)), rng.uniform(size=(12, 64))
    every = np.exp(spread * np.random.default_rng(1).standard_normal(4000))

    def share(strength, sigma):
        return 0.5 * (1 - np.exp(-2 * strength * sigma**power))

    return (
        lambda sigma, draw: float((ranks[draw] < share(strengths[draw], sigma)).mean()),
        lambda sigma: float(share(every, sigma).mean()),
    )


@pytest.mark.parametrize("power", [0.8, 1.0, 1.5, 2.0, 3.0, 6.0])
@pytest.mark.parametrize("factor", [0.05, 0.6, 1.0, 30.0])
def test_a_power_of_sigma(power, factor):
    """All draws alike: the crossing is at sigma 0.3 whatever it begins with."""
    found, num = searched(lambda sigma, draw: min(1.0, 0.1 * (sigma / 0.3) ** power), 0.3 * factor)
    assert found.sigma == pytest.approx(0.3, rel=0.06)
    assert found.rise == 0.1 and found.sem < 1e-12 and not found.reason
    assert num <= 44


@pytest.mark.parametrize("power", [1.5, 2.0, 4.0])
def test_two_stated_errors_cover_the_crossing_of_all_draws(power):
    covered, counts, ratios = [], [], []
    for seed in range(150):
        rise, mean = scattered(seed, power)
        true = brentq(lambda sigma, mean=mean: mean(sigma) - 0.1, 1e-4, 1e3)
        found, num = searched(rise, true * 4 ** np.random.default_rng(seed).uniform(-2, 2))
        error = found.sigma * math.hypot(found.sem / 0.1, 0.05)
        covered.append(abs(found.sigma - true) <= 2 * error)
        counts.append(num)
        ratios.append(math.log(found.sigma / true))
    assert np.mean(covered) >= 0.93
    assert abs(np.mean(ratios)) < 0.05
    assert np.mean(counts) < 32  # trials of all draws from bracket to bracket took 54 to 61


def test_it_is_the_crossing_of_its_own_draws():
    """Whatever the path: within what the tolerance says, up to steps of 1/768."""
    for seed in range(30):
        rise, _ = scattered(seed, 2.0)
        found = [searched(rise, start)[0].sigma for start in (0.01, 0.1, 0.3, 3.0)]
        for sigma in found:
            below, above = (np.mean([rise(sigma * f, d) for d in range(12)]) for f in (math.exp(-0.15), math.exp(0.15)))
            assert below <= 0.1 <= above
        assert max(found) < 1.25 * min(found)


def test_a_step_has_a_bracket_at_its_lower_end():
    found, _ = searched(lambda sigma, draw: 0.02 if sigma < 0.7 else 0.6)
    assert 0.7 / 1.05 <= found.sigma <= 0.7
    assert found.rise == pytest.approx(0.02)


def test_a_dip_below_the_target_is_left_outwards():
    """The farther trial is the worse one, and the search goes on from there."""
    found, _ = searched(lambda sigma, draw: 0.07 if sigma < 1.1 else 0.068 if sigma < 3 else 0.6)
    assert 3 / 1.05 <= found.sigma <= 3 and found.rise == pytest.approx(0.068)


def test_no_crossing_has_a_reason():
    found, num = searched(lambda sigma, draw: 0.08)  # near the target, and stays there
    assert found.sigma is None and found.reason == "the error rises by 0.08 only, whatever the noise"
    found, _ = searched(lambda sigma, draw: -0.5)
    assert found.sigma is None and "-0.5 only, whatever the noise" in found.reason
    found, _ = searched(lambda sigma, draw: 0.3)
    assert found.sigma is None and found.reason == "the error rises by 0.3 under any noise"
    found, num = searched(lambda sigma, draw: 0.2, floor="noise of standard deviation 1")
    assert found.reason == "noise of standard deviation 1 alone raises the error by 0.2" and num == 12


def test_all_draws_may_be_few():
    wanted = Wanted(0.1, 0.05, 4, 4)
    found, _ = searched(lambda sigma, draw: min(1.0, 0.1 * sigma**2 * (1 + 0.1 * draw)), 2.0, wanted)
    assert found.sigma == pytest.approx(1 / math.sqrt(1.15), rel=0.05)
