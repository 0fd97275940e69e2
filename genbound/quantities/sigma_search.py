r"""The search for the sigma at which a mean rise over draws meets a target, with few draws until it is near.

All trials use the same draws, the first ones of one sequence, so that the mean rise is a nearly monotone function of
sigma. A trial has ``num_coarse`` draws while its rise is more than a factor of :data:`NEAR` off the target t. The first
one that is near has the other draws at the same sigma, and a power law goes on from the mean rise r of all,

.. math:: \sigma^* = \sigma \, (t / r)^q.

q is :data:`ROOT` give or take :data:`UNSURE`; between this trial and another one it is seen, over the draws that both
have, with the error of what the draws differ in. Either counts by its precision. The error of both together, times
:math:`|\ln(t/r)|`, is what :math:`\sigma^*` may be wrong by for the law's sake. The search ends where that is no more
than the tolerance and no trial by all draws contradicts it; else :math:`\sigma^*` is tried with all draws. Where rises
are no power of sigma (steps, of few samples), a bracket as narrow as the tolerance ends it, at its lower end.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

STEP = 4.0  # the largest factor from one sigma to the next
SMALLEST, LARGEST = 2.0**-40, 2.0**20
NEAR = 1.5  # factor between a rise of few draws and the target from which on all are drawn
FEW = 6  # trials of few draws between two others, after which all are drawn wherever the rise is
ROOT, UNSURE = 0.65, 0.3  # what power of the rise sigma goes by where nothing is known, and its standard error
BENDS = 0.2  # its relative change from between two trials to the target


class Asked(NamedTuple):
    """A sigma, and the first and the last draw that its rise is wanted of, the latter excluded."""

    sigma: float
    first: int
    last: int


Search = Generator[Asked, np.ndarray, T]  # asks for rises of the error, one for each draw


@dataclass(frozen=True)
class Found:
    """A sigma with the rise there and its standard error over the draws, or the reason why there is none."""

    sigma: float | None = None
    rise: float | None = None
    sem: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Start:
    """Where a search begins.

    Attributes:
        sigma: of the first trial.
        floor: what the noise at sigma 0 is, where it may be too much already.
    """

    sigma: float
    floor: str = ""


@dataclass(frozen=True)
class Wanted:
    """What is searched for.

    Attributes:
        target: mean rise of the error.
        tolerance: of sigma, relative.
        num_coarse: draws far from the target.
        num_draws: near it.
    """

    target: float
    tolerance: float
    num_coarse: int
    num_draws: int


class _Root(NamedTuple):
    """The power of the rise that sigma goes by, and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class _Trial:
    """The rises at one sigma, of the first draws ``[D]``."""

    sigma: float
    rises: np.ndarray

    @property
    def rise(self) -> float:
        return float(self.rises.mean())

    @property
    def sem(self) -> float:
        return float(self.rises.std(ddof=1) / math.sqrt(len(self.rises)))


def search(wanted: Wanted, start: Start) -> Search[Found]:
    """The sigma at which the mean rise of ``num_draws`` draws meets the target."""
    if start.floor:
        floor = float((yield Asked(0.0, 0, wanted.num_draws)).mean())
        if floor > wanted.target:
            return Found(reason=f"{start.floor} alone raises the error by {floor:.2g}")
    return (yield from _Searching(wanted, start.sigma).search())


@dataclass
class _Searching:
    """One search: its trials by few draws and those by all.

    Attributes:
        wanted: what is searched for.
        start: sigma of the first trial.
        few: trials by few draws, in their order.
        whole: trials by all draws, in their order.
    """

    wanted: Wanted
    start: float
    few: list[_Trial] = field(default_factory=list)
    whole: list[_Trial] = field(default_factory=list)

    def search(self) -> Search[Found]:
        near = yield from self._near()
        if near is None:
            return Found(reason=self._why_open(self.few))
        sigma, known = near.sigma, near.rises
        for step in count(1):
            if len(known) < self.wanted.num_draws:
                known = np.concatenate([known, (yield Asked(sigma, len(known), self.wanted.num_draws))])
            trial = _Trial(sigma, known)
            self.whole.append(trial)
            if (found := self._found()) is not None:
                return found
            sigma, known = self._next(step), known[:0]
            if not SMALLEST <= sigma <= LARGEST:
                return Found(reason=self._why_open(self.whole))
        raise AssertionError("counting does not end")

    def _near(self) -> Search[_Trial | None]:
        """A trial by few draws whose rise is near the target, or one of two that are near each other around it."""
        sigma, same, between = self.start, 0, 0
        while True:
            trial = _Trial(sigma, (yield Asked(sigma, 0, self.wanted.num_coarse)))
            self.few.append(trial)
            low, high = self._ends(self.few)
            if self._distance(trial) <= math.log(NEAR):
                return trial
            if low is None or high is None:
                if sigma == (SMALLEST if low is None else LARGEST):
                    return None
                # Farther each time, so that a plateau ends soon.
                least = math.log(STEP) * (same / 3 if same < 3 else 2.0 ** (same - 3))
                sigma, same = min(max(self._outwards(trial, least, ROOT), SMALLEST), LARGEST), same + 1
                continue
            between += 1
            if math.log(high.sigma / low.sigma) <= math.log(NEAR) or between == FEW:
                return min(low, high, key=self._distance)
            sigma = self._inside(low, high, self._root(low, high).value, 0.25 * math.log(high.sigma / low.sigma))

    def _found(self) -> Found | None:
        """Where the search ends, if it does."""
        best, root, error = self._best()
        (low, high), ratio = self._ends(self.whole), 1 + self.wanted.tolerance
        if error <= self.wanted.tolerance and self._distance(best) <= math.log(NEAR):
            factor = self.wanted.target / best.rise
            sigma = best.sigma * factor**root
            # No other trial by all draws says that the crossing is elsewhere.
            if (low is None or low.sigma <= ratio * sigma) and (high is None or sigma <= ratio * high.sigma):
                return Found(sigma, self.wanted.target, best.sem * factor)
        if low is not None and high is not None and high.sigma <= ratio * low.sigma:
            return Found(low.sigma, low.rise, low.sem)
        return None

    def _best(self) -> tuple[_Trial, float, float]:
        """The trial by all draws that is nearest to the target, the root there, and sigma's relative error for it."""
        best = min(self.whole, key=self._distance)
        roots = [self._root(best, trial) for trial in (*self.whole, *self.few) if trial.sigma != best.sigma]
        root = min(roots, key=lambda one: one.error, default=_Root(ROOT, UNSURE))
        return best, root.value, self._distance(best) * root.error

    def _next(self, step: int) -> float:
        """The sigma that is tried next with all draws."""
        width = math.log(1 + self.wanted.tolerance)
        _, root, _ = self._best()
        low, high = self._ends(self.whole)
        if low is not None and high is not None:
            if step % 4 == 0 or math.log(high.sigma / low.sigma) <= 2 * width:
                return math.sqrt(low.sigma * high.sigma)
            return self._inside(low, high, root, 0.4 * width)
        # From the outermost, at least so far, and farther each time, so that a plateau ends too, and a dip of it.
        return self._outwards(self.whole[-1], 0.45 * width * 2.0 ** (step - 1), root)

    def _outwards(self, trial: _Trial, least: float, root: float) -> float:
        """Towards the target, by the power law and by so much in logarithms at least."""
        target = self.wanted.target
        aimed = abs(math.log(target / max(trial.rise, target / 1e3))) * root
        length = min(max(least, aimed), max(least, math.log(STEP)))
        return trial.sigma * math.exp(length if trial.rise <= target else -length)

    def _inside(self, low: _Trial, high: _Trial, root: float, margin: float) -> float:
        """Between two trials, by the power law from the nearer one, so far from either in logarithms at least."""
        nearer, target = min(low, high, key=self._distance), self.wanted.target
        aimed = math.log(nearer.sigma) + math.log(target / max(nearer.rise, target / 1e3)) * root
        return math.exp(min(max(aimed, math.log(low.sigma) + margin), math.log(high.sigma) - margin))

    def _distance(self, trial: _Trial) -> float:
        """Logarithm of the factor between its rise and the target."""
        return abs(math.log(self.wanted.target / trial.rise)) if trial.rise > 0 else math.inf

    def _root(self, one: _Trial, other: _Trial) -> _Root:
        """As two trials tell it of the draws that both have, and as it is where nothing is known."""
        both = min(len(one.rises), len(other.rises))
        rises = [trial.rises[:both] for trial in (one, other)]
        means = [float(values.mean()) for values in rises]
        if min(means) <= 0:
            return _Root(ROOT, UNSURE)
        factor, length = math.log(means[1] / means[0]), math.log(other.sigma / one.sigma)
        if factor * length <= 0:
            return _Root(ROOT, UNSURE)
        seen = length / factor
        # One draw's difference more than was seen: none of few does not mean that there is none.
        spread = math.hypot(float((rises[1] / means[1] - rises[0] / means[0]).std()), 1 / math.sqrt(both))
        error = seen * math.hypot(spread / math.sqrt(both - 1) / factor, BENDS)
        share = UNSURE**2 / (UNSURE**2 + error**2)
        return _Root(ROOT + share * (seen - ROOT), math.sqrt(share) * error)

    def _ends(self, trials: Sequence[_Trial]) -> tuple[_Trial | None, _Trial | None]:
        """The last trial within reach of the target, and the last one beyond."""
        low = [trial for trial in trials if trial.rise <= self.wanted.target]
        high = [trial for trial in trials if trial.rise > self.wanted.target]
        return (low[-1] if low else None), (high[-1] if high else None)

    def _why_open(self, trials: Sequence[_Trial]) -> str:
        low, high = self._ends(trials)
        if low is not None:
            return f"the error rises by {low.rise:.2g} only, whatever the noise"
        rise = math.inf if high is None else high.rise
        return f"the error rises by {rise:.2g} under any noise"
