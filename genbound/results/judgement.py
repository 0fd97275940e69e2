"""One number of two runs: is the difference within what is known of its errors?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from genbound.formatting import digits
from genbound.results.observations import Observation
from genbound.results.tolerance import Tolerance


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        measure, where: what was compared.
        expected, obtained, difference: as text.
        status: ``ok``, ``improved``, ``regression``, ``missing``, ``new``, ``skipped``, or ``absent`` from both.
        note: why.
        severity: how far it went beyond what was allowed, in standard errors or in what rounding may do; infinite where
            a number is gone. It ranks the rows of one measure.
        fell: whether it is less than was expected.
    """

    measure: str
    where: str
    expected: str
    obtained: str
    difference: str
    status: str
    note: str = ""
    severity: float = 0.0
    fell: bool = False

    @property
    def failed(self) -> bool:
        """Whether this comparison is a regression or lacks its number."""
        return self.status in ("regression", "missing")


@dataclass(frozen=True)
class Terms:
    """What two runs have in common, and how much a number of theirs may move.

    Attributes:
        same_seed: equal draws, if the samples and the weights are the same too.
        same_samples: both measured the same samples.
        rounding: relative difference that rounding may make.
        k: combined standard errors that a random number may move.
        same_weights: both measured the same checkpoint, so that a better value is no better network.
    """

    same_seed: bool
    same_samples: bool
    rounding: float
    k: float = 0.0
    same_weights: bool = True

    def sem(self, one: Observation, other: Observation) -> float:
        """Combined standard error, in the numbers' unit; the choice of samples counts where it differs."""
        data = 0.0 if self.same_samples else math.hypot(one.data_sem or 0.0, other.data_sem or 0.0)
        return math.sqrt(one.sem**2 + other.sem**2 + data**2)

    @property
    def same_draws(self) -> bool:
        """Whether what was drawn is the same: equal draws at other weights err otherwise."""
        return self.same_seed and self.same_weights

    def allowed(self, expected: Observation, obtained: Observation) -> float:
        """What rounding may do, in the numbers' unit, and of logarithms what other draws may."""
        sizes = abs(expected.number), abs(obtained.number)
        rounding = self.rounding * (max(1.0, sizes[0]) if expected.logarithm else max(sizes))
        return rounding if self.same_draws else rounding + max(expected.slack, obtained.slack)


def judge(expected: Observation, obtained: Observation, rule: Tolerance | None, terms: Terms) -> Row:
    """Compare one number of a run with that of the baseline.

    Args:
        expected: of the baseline.
        obtained: of the run; without a value if it is not there.
        rule: what the user allows it, if anything.
        terms: on which the runs are compared.
    """
    if rule is not None and rule.ignore:
        return Row(expected.measure, expected.where, "", "", "", "skipped", "a tolerance says to ignore them")
    said = _incomparable(expected, obtained, terms)
    found = _moved(expected, obtained, rule, terms) if said is None else ("", *said, math.inf, False)
    return Row(expected.measure, expected.where, as_text(expected), as_text(obtained), *found)


def _incomparable(expected: Observation, obtained: Observation, terms: Terms) -> tuple[str, str] | None:
    """``(status, note)`` of what cannot be told by its errors."""
    if expected.value is None:
        return ("absent", "neither has a value") if obtained.value is None else ("new", "the baseline has no value")
    if obtained.value is None:
        return "missing", "has no value any more" + (f": {obtained.reason}" if obtained.reason else "")
    if not terms.same_samples and expected.data_sem is None:
        return "skipped", "other samples were measured (same --seed and --samples compare these too)"
    if not terms.same_seed and (expected.extreme or obtained.extreme):
        return "skipped", "another seed chooses among other draws (same --seed compares these too)"
    return None


def _moved(
    expected: Observation, obtained: Observation, rule: Tolerance | None, terms: Terms
) -> tuple[str, str, str, float, bool]:
    """``(difference, status, note, severity, fell)`` of two numbers that have values."""
    if expected.logarithm != obtained.logarithm:  # one of them is 0, which has none
        expected, obtained = expected.as_value(), obtained.as_value()
    change = obtained.number - expected.number
    # At equal seed and weights a bound is arithmetic on numbers that are compared themselves.
    arithmetic = expected.is_bound and terms.same_draws
    sem = 0.0 if arithmetic else terms.sem(expected, obtained)
    beyond = change if arithmetic else _beyond(expected, obtained)
    allowed, k = terms.allowed(expected, obtained), terms.k
    if rule is not None:
        k = rule.size if rule.unit == "sem" else k
        allowed += rule.allowed(expected, beyond)
        beyond = rule.counted(beyond)
    difference = _difference(expected, change, sem)
    if abs(beyond) - allowed <= k * sem:  # never of what is not a number
        return difference, "ok", "", 0.0, change < 0
    severity = abs(beyond) / (sem or terms.allowed(expected, obtained) or 1e-300)
    if beyond < 0 and _is_better(expected, rule, terms):
        return difference, "improved", "", severity, True
    return difference, "regression", _limit(rule, sem, k), severity, change < 0


def _is_better(expected: Observation, rule: Tolerance | None, terms: Terms) -> bool:
    """Whether a number that fell is a better one, and not another number for the same network."""
    if expected.is_guarantee:
        return rule is None or rule.sign != "-"
    return rule is None and expected.falls_when_better and not terms.same_weights


def _beyond(expected: Observation, obtained: Observation) -> float:
    """The change, or between certain intervals the gap: none where they overlap."""
    if expected.lower is None or expected.upper is None or obtained.lower is None or obtained.upper is None:
        return obtained.number - expected.number
    return max(0.0, obtained.lower - expected.upper) - max(0.0, expected.lower - obtained.upper)


def _limit(rule: Tolerance | None, sem: float, k: float) -> str:
    """What a number went beyond."""
    errors = f"{k:.2g} sem" if sem else ""
    if rule is None or rule.unit == "sem":
        return f"more than {errors or 'rounding'}"
    return f"{rule} and {errors}" if errors else str(rule)


def as_text(o: Observation) -> str:
    """A number as people read it, with its error; ``/`` where there is none."""
    if o.value is None:
        return "/"
    if o.logarithm:
        return f"{10**o.value:.6g}" if abs(o.value) < 300 else f"1e{o.value:.6g}"
    if o.sem:
        return f"{o.value:.5g} ± {o.sem:.2g}"
    return f"[{o.lower:.6g}, {o.upper:.6g}]" if o.lower is not None and o.lower != o.upper else f"{o.value:.8g}"


def _difference(expected: Observation, change: float, sem: float) -> str:
    """In standard errors where there are any, and relative."""
    if expected.logarithm:
        relative = f"{100 * (10**change - 1):+.3g} %" if abs(change) < 2 else f"factor 1e{change:+.3g}"
    elif expected.value:
        relative = f"{100 * change / abs(expected.value):+.3g} %"
    else:
        relative = f"{digits(change)}"
    return f"{change / sem:+.1f} sem ({relative})" if sem else relative
