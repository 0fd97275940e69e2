r"""Which samples stand for all of them, where each is expected to contribute a different amount to a mean.

Let :math:`x_s` be what sample s of n is expected to contribute, up to a factor, and :math:`s_s = x_s + \tfrac14 \bar
x`, which no sample has none of. Of m samples the largest are taken for certain: those with :math:`m\,s_s \ge \sum s`,
one after another. The others are cut, in the order of their size, into *strata* of equal :math:`\sum s`, and two of
each are drawn without replacement. So a sample of a stratum with :math:`N_h` members is drawn with probability
:math:`2 / N_h`, in proportion to the mean size in its stratum; the estimate weighs it with the inverse (Horvitz &
Thompson):

.. math:: \hat\mu = \sum_h \frac{N_h}{n}\,\bar y_h, \qquad
   \mathrm{Var}\,\hat\mu = \sum_h \Bigl(\frac{N_h}{n}\Bigr)^2 \Bigl(1 - \frac{n_h}{N_h}\Bigr) \frac{S_h^2}{n_h} .

It is unbiased whatever the sizes are, for they are known of all n before anything is drawn; and so is the variance with
the strata's own :math:`s_h^2`. Drawing one by one with probabilities in proportion to the size would leave the variance
of :math:`y/s`; strata leave what y varies among samples of one size. A constant has no error at all (the weights add up
to 1), and one that is in proportion to x almost none. The derivation is in ``docs/choice_of_samples.md``.

References:
    Horvitz & Thompson, A generalization of sampling without replacement from a finite universe, JASA, 1952. Neyman, On
    the two different aspects of the representative method, JRSS, 1934. Dalenius & Hodges, Minimum variance
    stratification, JASA, 1959 (cutting by a cumulated size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from genbound.estimators.estimate import effective_freedom, student

FLOOR = 0.25  # of the mean size, that every sample has beside its own: small samples may hold a large value
DRAWN = 2  # samples of a stratum: more strata tell more than more samples of each
LEAST = 8  # samples, below which the strata would be too few to know their spread


@dataclass(frozen=True)
class Choice:
    """Some of n samples, and which stratum each was drawn from.

    Several choices that were drawn independently are together one (:func:`joined`): its mean is that of theirs. A
    sample that more than one of them has stands there as often.

    Attributes:
        members: numbers of the m samples among the n ``[m]``.
        strata: number of each one's stratum ``[m]``.
        sizes: how many of the n samples each stratum has ``[H]``.
        weights: of each stratum's choice in the mean of the joined ones ``[H]``; 1 where there is one alone.
    """

    members: np.ndarray
    strata: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray

    @property
    def total(self) -> float:
        """The n samples."""
        return float((self.weights * self.sizes).sum())

    @property
    def shares(self) -> np.ndarray:
        """How much each sample counts in a mean over all, in units of the average one ``[m]``."""
        each = self.weights * self.sizes / np.bincount(self.strata, minlength=len(self.sizes))
        return each[self.strata] * (len(self.members) / self.total)

    def ordered(self, places: Sequence[int]) -> Choice:
        """The same samples in another order."""
        order = np.asarray(places, dtype=int)
        return replace(self, members=self.members[order], strata=self.strata[order])

    def data_sem(self, values: np.ndarray, noise: np.ndarray, num_data: int) -> np.ndarray:
        """Standard error of the weighted mean that comes from measuring these samples and not all.

        It is widened where few samples tell it (:func:`genbound.estimators.estimate.effective_freedom`). Where the n
        samples are themselves some of ``num_data``, what their choice adds is in it.

        Args:
            values: per-sample values ``[m, ...]``.
            noise: variance of each value's own Monte Carlo noise ``[m, ...]``, taken off the spread.
            num_data: size of the training set, n at least.

        Returns:
            ``[...]``, in the unit of the values.
        """
        drawn, total = np.bincount(self.strata, minlength=len(self.sizes)), self.total

        def along(factors: np.ndarray) -> np.ndarray:
            return factors.reshape(-1, *[1] * (values.ndim - 1))

        sums, noises = (np.zeros((len(drawn), *values.shape[1:])) for _ in range(2))
        np.add.at(sums, self.strata, values)
        np.add.at(noises, self.strata, noise)
        free = np.maximum(drawn - 1, 1)
        scale = (self.weights * self.sizes / total) ** 2 * (1 - drawn / self.sizes) / drawn
        found = along((scale / free)[self.strata]) * (values - (sums / along(drawn))[self.strata]) ** 2
        variance = np.maximum(found.sum(0) - (along(scale / drawn) * noises).sum(0), 0.0)
        variance = variance * student(effective_freedom(found, (free / drawn)[self.strata])) ** 2
        if total < num_data:
            weights = along(self.shares / len(self.members))
            around = values - (weights * values).sum(0)
            variance = variance + np.maximum((weights * (around**2 - noise)).sum(0), 0.0) / total * (
                1 - total / num_data
            )
        return np.sqrt(variance)


def choose_by_size(sizes: np.ndarray, num: int, numbers: np.ndarray, spreads: np.ndarray | None = None) -> Choice:
    """``num`` of n samples, in proportion to their sizes, or to what else is expected of them.

    Args:
        sizes: what each sample is expected to contribute, up to a factor; not negative ``[n]``. Strata are cut in
            their order.
        num: how many are measured: :data:`LEAST` at least, and fewer than n.
        numbers: independent uniform random numbers, one for each sample; a stratum gives those with the smallest. So a
            sample is likely to be chosen again where sizes are hardly other ones ``[n]``.
        spreads: what samples are drawn in proportion to, if that is another number: how far a sample's value is
            expected to lie from those of its size ``[n]``.
    """
    expected = with_floor(sizes if spreads is None else spreads)
    order = np.argsort(-expected, kind="stable")
    certain = _certain(expected[order], num)
    others = order[certain:]
    others = others[np.argsort(-sizes[others], kind="stable")]
    rest = expected[others]
    strata = np.floor((np.cumsum(rest) - 0.5 * rest) / rest.sum() * max(1, (num - certain) // DRAWN)).astype(int)
    present, strata = np.unique(strata, return_inverse=True)
    counts = _counts(np.bincount(strata, minlength=len(present)), num - certain)
    members, of, given = [order[:certain]], [np.zeros(certain, int)], [certain] * (certain > 0)
    for h, count in enumerate(counts):
        group = others[strata == h]
        members.append(group[np.argsort(numbers[group], kind="stable")[:count]])
        of.append(np.full(count, len(given)))
        given.append(len(group))
    return Choice(np.concatenate(members), np.concatenate(of), np.array(given), np.ones(len(given)))


def with_floor(expected: np.ndarray) -> np.ndarray:
    """What samples are drawn in proportion to, ``[n]``: no sample is without a chance."""
    expected = expected + FLOOR * expected.mean()
    return expected if expected.any() else np.ones(len(expected))


def joined(choices: Sequence[Choice], weights: Sequence[float] | np.ndarray) -> Choice:
    """Choices from the same n samples that were drawn independently, as one: ``weights`` of their means add up to 1."""
    starts = np.cumsum([0, *(len(choice.sizes) for choice in choices)])
    return Choice(
        np.concatenate([choice.members for choice in choices]),
        np.concatenate([choice.strata + start for choice, start in zip(choices, starts, strict=False)]),
        np.concatenate([choice.sizes for choice in choices]),
        np.concatenate([weight * choice.weights for choice, weight in zip(choices, weights, strict=True)]),
    )


def _certain(expected: np.ndarray, num: int) -> int:
    """How many of the largest are taken for certain; ``expected [n]`` falls. At least one stratum is left to draw."""
    left = np.cumsum(expected[::-1])[::-1]
    certain = 0
    while certain < num - DRAWN and expected[certain] * (num - certain) >= left[certain]:
        certain += 1
    return certain


def _counts(sizes: np.ndarray, num: int) -> np.ndarray:
    """How many are drawn of each stratum ``[H]``; what small ones cannot give the others do, the largest first."""
    counts = np.minimum(DRAWN, sizes)
    for h in np.argsort(-sizes, kind="stable"):
        counts[h] += min(max(num - counts.sum(), 0), sizes[h] - counts[h])
    return counts
