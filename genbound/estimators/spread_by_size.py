r"""How many samples, and which, a mean over all of them takes for a wanted error.

Samples of one size have values that differ, by a *spread* that is learned from those that were measured. Neyman's
allocation draws in proportion to it. Let :math:`S^2_s` be the variance of the values among samples of the size of
sample s, and :math:`V_s` the variance of a value's own noise in one draw. Samples drawn with probabilities
:math:`\pi_s`, from strata so thin that a size is one value, and measured with D draws each, have a mean of variance

.. math:: \frac{1}{n^2} \sum_s \Bigl( \frac{1 - \pi_s}{\pi_s} S_s^2 + \frac{V_s}{\pi_s D} \Bigr) ,

least for a number of samples if :math:`\pi_s \propto \sqrt{S_s^2 + V_s/D}`; it is then about the square of the mean
root over their number. With a price of :math:`c_0` for a sample and :math:`c_1` for a draw the best D is the one of
least :math:`(c_0 + c_1 D)\,(\overline{\sqrt{S^2 + V/D}})^2`.

The spread at a size is told by neighbours in size: twice in three the squared distance of a value from the mean of the
two beside it has the variance as its mean where the values are smooth in the size (Gasser, Sroka & Jennen-Steinmetz).
Its mean is taken over some neighbours.

References:
    Neyman, On the two different aspects of the representative method, JRSS, 1934. Gasser, Sroka & Jennen-Steinmetz,
    Residual variance and residual pattern in nonlinear regression, Biometrika, 1986. Cochran, Sampling Techniques,
    1977 (two-stage sampling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from genbound.estimators.choice import LEAST, with_floor

NEAR = 6  # neighbours to either side that a spread is told by, at the least
SHARE = 16  # part of all samples that are so many where there are more


@dataclass(frozen=True)
class Spreads:
    """What is expected of each of n samples.

    Attributes:
        between: variance of the values among samples of its size ``[n]``.
        draw: variance of the noise of one draw of it ``[n]``.
    """

    between: np.ndarray
    draw: np.ndarray

    @classmethod
    def learned(
        cls, sizes: np.ndarray, values: np.ndarray, noise: np.ndarray, draws: np.ndarray, every: np.ndarray
    ) -> Spreads:
        """From m samples that were measured.

        Args:
            sizes: theirs ``[m]``, three of them at least.
            values: theirs, with noise ``[m]``.
            noise: its variance ``[m]``.
            draws: of each, which the noise is the mean of ``[m]``.
            every: sizes of all samples ``[n]``.
        """
        order = np.argsort(sizes, kind="stable")
        at, values, noise, each = sizes[order], values[order], noise[order], (noise * draws)[order]
        apart = np.empty(len(at))
        apart[1:-1] = (values[1:-1] - (values[:-2] + values[2:]) / 2) ** 2 * (2 / 3)
        apart[[0, -1]] = (values[[0, -1]] - values[[1, -2]]) ** 2 / 2
        near = max(NEAR, len(at) // SHARE)
        smooth = (np.maximum(_near_mean(apart, near) - _near_mean(noise, near), 0.0), _near_mean(each, near))
        return cls(*(np.interp(every, at, told) for told in smooth))

    def of(self, draws: int) -> np.ndarray:
        """Standard deviation of a sample's value from ``draws`` around those of its size ``[n]``."""
        return np.sqrt(self.between + self.draw / draws)

    def best_draws(self, price: Callable[[int], float], among: Sequence[int]) -> int:
        """How many draws a sample gets; ``price(D)`` is that of a sample with D of them."""
        return min(among, key=lambda draws: price(draws) * self.of(draws).mean() ** 2)

    def variance(self, chances: np.ndarray, draws: int) -> float:
        """Of the mean over all samples, drawn with these chances ``[n]``, from ``draws`` of each."""
        found = (1 / chances - 1) * self.between + self.draw / draws / chances
        return float(found.sum()) / len(chances) ** 2

    def samples_for(self, variance: float, draws: int) -> int:
        """How many samples with ``draws`` each leave this variance; all of them where no fewer do."""
        low, high = LEAST, len(self.between)
        while low < high:
            middle = (low + high) // 2
            enough = self.variance(chances(self.of(draws), middle), draws) <= variance
            low, high = (low, middle) if enough else (middle + 1, high)
        return low


def chances(expected: np.ndarray, num: int) -> np.ndarray:
    """With which probability each of n samples is one of ``num``, in proportion to what is expected of it ``[n]``."""
    expected = with_floor(expected)
    order = np.argsort(-expected, kind="stable")
    left = np.cumsum(expected[order][::-1])[::-1]
    certain = 0
    while certain < num - 1 and expected[order[certain]] * (num - certain) >= left[certain]:
        certain += 1
    found = np.ones(len(expected))
    rest = order[certain:]
    found[rest] = np.minimum(expected[rest] * (num - certain) / left[certain], 1.0)
    return found


def _near_mean(values: np.ndarray, near: int) -> np.ndarray:
    """Of each of them and so many to either side; fewer at the ends."""
    window = np.ones(2 * near + 1)
    return np.convolve(values, window)[near:-near] / np.convolve(np.ones(len(values)), window)[near:-near]
