"""An axis of powers of ten in two parts, so that 1e37 does not squeeze what lies around 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genbound.figures.style import GREY

NEAR = 0.62  # of the axis, for the part that has the gap
WIDEST = 8.0  # decades that one part shows well
BEYOND = 1.5  # decades past the yardsticks that are still near them
APART = 1.0  # decades between two values that the cut may lie between
MARGIN = 0.06  # of a part's length, at its ends


@dataclass(frozen=True)
class PowersOfTen:
    """What an axis of base-10 logarithms shows.

    Attributes:
        low, high: its ends.
        cut: where the finer part ends and the coarser begins; ``None`` if there is one part.
    """

    low: float
    high: float
    cut: float | None = None

    @classmethod
    def showing(cls, values: Sequence[float], near: Sequence[float] = ()) -> PowersOfTen:
        """An axis for these logarithms.

        Args:
            values: all that is drawn.
            near: those that must be told apart well: gap and vacuous line. Without any, it is the smallest value.
        """
        ordered = sorted([*values, *near])
        least, most = ordered[0], ordered[-1]
        limit = max(near, default=least) + BEYOND
        last = max(value for value in ordered if value <= limit)
        for value in ordered:  # the cut is to lie between two values, not beside one
            if limit < value < limit + WIDEST / 2 and value - last < APART:
                last = value
        far = [value for value in ordered if value > last]
        if not far or most - least <= WIDEST or (most - least) * NEAR <= last - least:
            pad = MARGIN * max(most - least, 1.0)
            low, high = least - pad, most + pad
            if not _ticks(low, high, 7):  # up to the nearer power of ten
                below, above = math.floor(low), math.ceil(high)
                low, high = (below, high) if low - below < above - high else (low, above)
            return cls(low, high)
        cut = min((last + far[0]) / 2, last + APART)
        return cls(least - MARGIN * (cut - least), most + 2 * MARGIN * max(most - cut, 1.0), cut)

    def to_axis(self, logs: np.ndarray) -> np.ndarray:
        """Logarithms to places; 0 and 1 are the ends, and what lies beyond them is continued."""
        logs = np.asarray(logs, dtype=float)
        if self.cut is None:
            return (logs - self.low) / (self.high - self.low)
        near = NEAR * (logs - self.low) / (self.cut - self.low)
        far = NEAR + (1 - NEAR) * (logs - self.cut) / (self.high - self.cut)
        return np.where(logs <= self.cut, near, far)

    def from_axis(self, places: np.ndarray) -> np.ndarray:
        """Places to logarithms."""
        places = np.asarray(places, dtype=float)
        if self.cut is None:
            return self.low + places * (self.high - self.low)
        near = self.low + places / NEAR * (self.cut - self.low)
        far = self.cut + (places - NEAR) / (1 - NEAR) * (self.high - self.cut)
        return np.where(places <= NEAR, near, far)

    def ticks(self) -> list[tuple[float, str]]:
        """``(logarithm, label)``, a few in each part; none beside the cut, where two would run into each other."""
        if self.cut is None:
            return _ticks(self.low, self.high, 7)
        far = [t for t in _ticks(self.cut, self.high, 4) if t[0] > self.cut + 0.12 * (self.high - self.cut)]
        return [*_ticks(self.low, self.cut, 6), *far]

    def draw(self, ax: Any) -> None:
        """Give the x axis this scale, its ticks, and a mark where the parts meet."""
        ax.set_xscale("function", functions=(self.to_axis, self.from_axis))
        ax.set_xlim(self.low, self.high)
        ticks = self.ticks()
        ax.set_xticks([place for place, _ in ticks], [label for _, label in ticks], minor=False)
        ax.minorticks_off()
        if self.cut is not None:
            width = 0.006
            ends = self.from_axis(np.array([NEAR - width, NEAR + width]))
            ax.axvspan(*ends, color=GREY, alpha=0.25, lw=0)
            ax.annotate("the scale changes", (NEAR, 1.0), xycoords="axes fraction", xytext=(0, 2),
                        textcoords="offset points", ha="center", va="bottom", fontsize=6.5, color=GREY)  # fmt: skip


def _ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Whole powers of ten, every first, second, fifth …; with 2 and 5 between them where there are few."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    if last - first < 2:
        places = [(math.log10(m) + k) for k in range(first - 1, last + 1) for m in (1, 2, 5)]
        return [(p, _label(p)) for p in places if low <= p <= high]
    steps = [s * 10**k for k in range(4) for s in (1, 2, 5)]
    step = next((s for s in steps if (last - first) / s + 1 <= most), steps[-1])
    return [(float(p), _label(p)) for p in range(-(-first // step) * step, last + 1, step)]


def _label(log10: float) -> str:
    return f"{float(f'{10**log10:.3g}'):g}" if abs(log10) < 3.5 else f"$10^{{{log10:g}}}$"
