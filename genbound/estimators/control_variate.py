r"""Control variates in strata: draws whose spread is partly known.

A *control* c is drawn together with a value y, and its mean is known. So the mean of :math:`y - \beta c` plus
:math:`\beta` times the control's mean is unbiased for any slope :math:`\beta` that was fixed beforehand. It spreads
less than y where the two go together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PAYS = 0.6  # part of a draw's variance that a control may leave


@dataclass(frozen=True)
class ControlledDraws:
    """D draws from strata, of S values each.

    Attributes:
        values: ``[D, S]``.
        control: ``[D]``, in a unit of its own; zero where there is none.
        stratum: which one a draw is from ``[D]``.
        counts: number of draws of each stratum.
    """

    values: np.ndarray
    control: np.ndarray
    stratum: np.ndarray
    counts: np.ndarray

    def moments(self, slopes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sum of squared deviations of every stratum's draws, both ``[strata, S]``.

        Args:
            slopes: of the control that is taken off the values ``[S]``; ``None`` takes nothing off.
        """
        values = self.values if slopes is None else self.values - slopes * self.control[:, None]
        return self._moments(values)

    def cubes(self, slopes: np.ndarray) -> np.ndarray:
        """Third central moment of a draw of every stratum ``[strata, S]``; 0 where there are less than three."""
        values, num = self.values - slopes * self.control[:, None], self.counts[:, None].astype(float)
        mean, cubes = self._moments(values)[0], np.zeros((len(self.counts), values.shape[1]))
        np.add.at(cubes, self.stratum, (values - mean[self.stratum]) ** 3)
        return np.where(num > 2, cubes * num / np.maximum((num - 1) * (num - 2), 1), 0.0)

    def contributions(self, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each draw adds to the error of the strata's mean, up to its sign: their squares add up to its variance.

        Draws that are alone in their stratum are left out. ``[draws, S]``, in the unit of the values; and the degrees
        of freedom of each draw beside its stratum's mean ``[draws]``.
        """
        values, num = self.values - slopes * self.control[:, None], self.counts[self.stratum][:, None].astype(float)
        mean, _ = self._moments(values)
        size = np.abs(values - mean[self.stratum]) / np.sqrt(np.maximum(num * (num - 1), 1))
        several = num[:, 0] > 1
        return size[several], 1 - 1 / num[several, 0]

    def slopes(self) -> np.ndarray:
        """The best slope for each value ``[S]``; 0 where the control explains less than it costs."""
        means, _ = self._moments(np.column_stack([self.values, self.control]))
        y, c = self.values - means[self.stratum, :-1], self.control - means[self.stratum, -1]
        # Draws are given in proportion to a stratum's spread: its variance counts by the inverse of that.
        squares = np.bincount(self.stratum, c**2, len(self.counts))
        spread = np.sqrt(squares / np.maximum(self.counts - 1, 1))[self.stratum]
        weight = np.divide(1.0, spread, out=np.zeros_like(c), where=spread > 0)
        if not weight.any():
            return np.zeros(self.values.shape[1])
        slopes = (weight[:, None] * y * c[:, None]).sum(0) / (weight * c**2).sum()
        left = (weight[:, None] * (y - slopes * c[:, None]) ** 2).sum(0)
        return np.where(left <= PAYS * (weight[:, None] * y**2).sum(0), slopes, 0.0)

    def _moments(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(self.counts), *values.shape[1:])
        mean, squares = np.zeros(shape), np.zeros(shape)
        np.add.at(mean, self.stratum, values)
        mean /= np.maximum(self.counts, 1)[:, None]
        np.add.at(squares, self.stratum, (values - mean[self.stratum]) ** 2)
        return mean, squares
