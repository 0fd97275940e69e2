"""Every number of a run that a regression check compares, with what is known of its error.

What is known of one measure alone stands in its row: :class:`genbound.quantities.summary.Reading` of a quantity,
:class:`genbound.bounds.Bound`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from genbound.bounds import BOUNDS, Bound
from genbound.bounds.certificates import drawn
from genbound.bounds.forms import IS_ZERO
from genbound.quantities.catalogue import reading_of
from genbound.quantities.summary import Number
from genbound.results.results import Results

TINY = 1e-12  # of a logarithm: rounding
MOST = 300.0  # decades that a number has as a float, and its products with errors too
EDGE = 1e-9  # in decades: what a value may lie beside its own interval
DRAWN = 0.01  # at the least, what another seed may do to a certificate whose noise a pilot chooses, beside its sem


@dataclass(frozen=True, kw_only=True)
class Observation(Number):
    """One number of a run: ``where`` is the layer, sigma, entry or form.

    Attributes:
        measure: quantity or bound.
        slack: difference of a logarithm between two seeds that says nothing.
        logarithm: ``value``, ``sem``, ``lower`` and ``upper`` are those of a base-10 logarithm.
        is_bound: computed, not measured.
        reason: why there is no value.
        falls_when_better: of another network a smaller number is no regression: a bound, a norm, a loss, a curvature.
        is_guarantee: of any network a smaller number is no regression: it holds, whichever way it was found.
    """

    measure: str
    slack: float = 0.0
    logarithm: bool = False
    is_bound: bool = False
    reason: str = ""
    falls_when_better: bool = False
    is_guarantee: bool = False

    @property
    def number(self) -> float:
        """The value, of an observation that is known to have one."""
        if self.value is None:
            raise ValueError(f"{self.name} has no value: {self.reason}")
        return self.value

    @property
    def name(self) -> str:
        """``measure:where``, or the measure alone."""
        return f"{self.measure}:{self.where}" if self.where else self.measure

    def as_value(self) -> Observation:
        """The same number, not as a logarithm; one beyond 1e300 stands as that."""
        if not self.logarithm or self.value is None:
            return self
        value = 10.0 ** min(self.value, MOST)
        lower, upper = (None if side is None else 10.0 ** min(side, MOST) for side in (self.lower, self.upper))
        sem, slack = value * math.log(10) * self.sem, value * (10**self.slack - 1)
        return replace(self, value=value, sem=sem, lower=lower, upper=upper, slack=slack, logarithm=False)


def observe(results: Results) -> dict[str, Observation]:
    """All numbers of a run by name."""
    measured = {o.name: o for name, summary in results.quantities.items() for o in _measured(name, summary)}
    computed = (
        replace(o, falls_when_better=True, is_guarantee=row["kind"] == "certificate")
        for name, row in results.bounds.items()
        for o in _bound(name, row, results, measured)
    )
    return measured | {o.name: o for o in computed}


def _measured(name: str, summary: Mapping[str, Any]) -> Iterator[Observation]:
    reading = reading_of(name)
    for number in reading.numbers(summary):
        better = reading.falls_when_better(number.where)
        yield Observation(measure=name, **vars(number), falls_when_better=better)


@dataclass(frozen=True)
class _Errors:
    """What a bound's logarithm inherits from what it was computed from.

    Attributes:
        sem: standard error over the draws; where it is not 0, there is no certain interval.
        data_sem: 0 if nothing depends on which samples were drawn; else nobody knows it.
        extreme: something is the most extreme over random draws.
        lower, upper: a certain interval, not as logarithms.
    """

    sem: float
    data_sem: float | None
    extreme: bool
    lower: float | None
    upper: float | None

    @property
    def width(self) -> float:
        """Of the interval, in its logarithm."""
        return TINY if not self.lower or self.upper is None else math.log10(self.upper / self.lower)


def _bound(
    name: str, row: Mapping[str, Any], results: Results, measured: Mapping[str, Observation]
) -> Iterator[Observation]:
    """The value of a bound and its other forms, as logarithms; zero has none and stays what it is."""
    errors, value, by_draws = _errors(name, row, results, measured), row["value"], None
    if row["kind"] == "certificate" and "gibbs_error" in getattr(BOUNDS.get(name), "requires", ()):
        by_draws = drawn(results.quantities.get("gibbs_error", {}), results.config["delta"])
    zero = Observation(measure=name, where="", value=0.0, data_sem=errors.data_sem, is_bound=True)
    if value is not None and value <= 0:
        yield replace(zero, value=value)
    else:  # the value is what people edit in a baseline; what overflows has its logarithm alone
        log10 = row["log10"] if value is None else math.log10(value)
        yield _logarithm(name, "", log10, errors, row["note"], by_draws)
    for form, entry in row["forms"].items():
        if form != "main_term" and entry.get("log10") is not None:
            # The noise is chosen for the least value. Where that changes little with it, another form may change much.
            chosen = errors if by_draws is None or value is None else replace(errors, extreme=True)
            yield _logarithm(name, form, entry["log10"], chosen, row["note"], by_draws)
        elif form != "main_term" and entry.get("note", "").split("; ")[-1] == IS_ZERO:
            yield replace(zero, where=form)


def _logarithm(
    measure: str, form: str, log10: float | None, errors: _Errors, note: str, by_draws: tuple[float, float] | None
) -> Observation:
    """One form's logarithm; ``by_draws`` is what draws make of a certificate that rests on them."""
    lower, upper = (math.log10(s) if s and s > 0 and not form else None for s in (errors.lower, errors.upper))
    if log10 is not None and lower is not None and upper is not None and not lower - EDGE <= log10 <= upper + EDGE:
        lower = upper = None  # of a value that was set by hand
    # A form that has no interval of its own shares the relative width of the value's.
    sem, slack = errors.sem, errors.width if form and log10 else 0.0
    if by_draws is not None and log10 is not None:
        sem, slack = by_draws[0] / 10**log10 / math.log(10), math.log10(1 + max(DRAWN, by_draws[1]) / 10**log10)
    return Observation(
        measure=measure, where=form, value=log10, sem=sem, data_sem=errors.data_sem, lower=lower, upper=upper,
        extreme=errors.extreme, logarithm=True, is_bound=True, reason="" if log10 is not None else note, slack=slack,
    )  # fmt: skip


def _errors(name: str, row: Mapping[str, Any], results: Results, measured: Mapping[str, Observation]) -> _Errors:
    bound = BOUNDS.get(name)
    # Of some samples the upper side is not known; that of these samples is.
    lower, upper = (row.get("over_samples", row)[side] for side in ("lower", "upper"))
    if bound is None:
        return _Errors(0.0, None, False, lower, upper)
    whole = row["kind"] == "certificate" or all(reading_of(quantity).fixed for quantity in bound.requires)
    data = 0.0 if whole else None  # a certificate is of all training (or test) samples
    extreme = any(reading_of(q).takes_extremes(results.quantities.get(q, {})) for q in bound.requires)
    if bound.interval_sems and row["value"] and upper is not None and (upper > lower or not bound.shares_error_of):
        sem = (upper - lower) / (2 * bound.interval_sems) / row["value"]
        return _Errors(sem / math.log(10), data, extreme, None, None)
    return _Errors(_shared(bound, measured) / math.log(10), data, extreme, lower, upper)


def _shared(bound: Bound, measured: Mapping[str, Observation]) -> float:
    """The largest relative standard error among the numbers whose errors are the bound's too."""
    found = (measured[name] for name in bound.shares_error_of if name in measured)
    return max((o.sem / abs(o.value) for o in found if o.value), default=0.0)
