"""Lengths of descriptions, against probabilities that are multiplied out symbol by symbol."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from genbound.estimators.universal_code import code_nats, kt_nats, laplace_nats

SEQUENCES = [[0, 0, 0], [1, -1, 2, 0, 0], [5], [-3, -3, -3, 0, 1, 1, 0, 0, 0, 7]]


def kt_probability(integers):
    """Krichevsky and Trofimov's rule, one symbol after the other, in exact arithmetic."""
    most, seen, probability = max(map(abs, integers)), {}, Fraction(1)
    for number, symbol in enumerate(integers):
        probability *= (seen.get(symbol, 0) + Fraction(1, 2)) / (number + Fraction(2 * most + 1, 2))
        seen[symbol] = seen.get(symbol, 0) + 1
    return probability / ((most + 1) * (most + 2))


def coin(outcomes):
    """The same rule for a coin."""
    seen, probability = [0, 0], Fraction(1)
    for number, outcome in enumerate(outcomes):
        probability *= (seen[outcome] + Fraction(1, 2)) / (number + 1)
        seen[outcome] += 1
    return probability


def laplace_probability(integers):
    """Zero or not by one coin; a fair sign; a step further or not by another one, as often as it goes on."""
    sizes = [abs(i) for i in integers if i]
    steps = [outcome for size in sizes for outcome in [1] * (size - 1) + [0]]
    return coin([int(i != 0) for i in integers]) * Fraction(1, 2) ** len(sizes) * coin(steps)


@pytest.mark.parametrize("integers", SEQUENCES, ids=str)
def test_lengths_are_minus_the_logarithm_of_the_probability(integers):
    array = np.array(integers)
    assert kt_nats(array) == pytest.approx(-math.log(kt_probability(integers)), rel=1e-12)
    assert laplace_nats(array) == pytest.approx(-math.log(laplace_probability(integers)), rel=1e-12)
    mixed = (kt_probability(integers) + laplace_probability(integers)) / 2
    assert code_nats(array) == pytest.approx(-math.log(mixed), rel=1e-12)


@pytest.mark.parametrize("num", [1, 2, 3])
def test_probabilities_add_up_to_at_most_one(num):
    """Of all sequences of a length: the larger the range, the nearer."""
    totals = []
    for most in (2, 10):
        every = itertools.product(range(-most, most + 1), repeat=num)
        totals.append(sum(math.exp(-code_nats(np.array(sequence))) for sequence in every))
    assert totals[0] < totals[1] <= 1 and totals[1] > 0.75


def test_a_thousand_zeros_are_nearly_free_and_noise_takes_its_entropy():
    assert code_nats(np.zeros(1000, int)) < 2
    noise = np.rint(np.random.default_rng(0).normal(0, 3, 20000)).astype(int)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 9)
    assert code_nats(noise) / 20000 == pytest.approx(entropy, rel=0.01)
    assert code_nats(np.array(4)) == code_nats(np.array([4])) and code_nats(np.array([])) == 0
