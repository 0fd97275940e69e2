"""How a stored summary is read: its numbers, each with what is known of its error, and what of it is printed and drawn.

A summary is what results.json has of a quantity: ``layers`` (layer -> row), ``sigmas`` (rows with a ``sigma``) and
named entries. In a row ``value`` is its number. Any number ``x`` may have its error beside it: ``x_sem`` over the
draws, ``x_data_sem`` from the choice of the samples (``sem`` and ``data_sem`` for ``value``). ``lower`` and ``upper``
are a certain interval, unless a ``sem`` beside them says that they are certain of the draws alone: then the truth lies
between them up to a few of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

Summary = Mapping[str, Any]

# Entries of any quantity that say how it was measured, or how well, and not what was found.
HOW = ("num_*", "sample", "sem", "*_sem", "seed", "seconds")


@dataclass(frozen=True)
class Number:
    """A number of a summary, in the unit of its quantity.

    Attributes:
        where: layer, sigma or entry, joined by dots; empty if there is only one.
        value: ``None`` where it does not exist.
        sem: standard error over the draws, 0 if nothing was drawn.
        data_sem: what the choice of samples adds; ``None`` if it does but nobody knows how much.
        lower, upper: a certain interval.
        extreme: the most extreme over random draws, or a mean that a few of them rule: another seed moves it by as
            much as no error bar knows.
    """

    where: str
    value: float | None
    sem: float = 0.0
    data_sem: float | None = 0.0
    lower: float | None = None
    upper: float | None = None
    extreme: bool = False


@dataclass(frozen=True)
class Reading:
    """What tables and figures must know of a quantity, so that none of them knows one by name.

    The defaults fit every summary whose numbers have their errors beside them.

    Attributes:
        fixed: no number depends on which samples were drawn: they are of the weights, or of the whole data.
        extremes: names of entries, with wildcards, that are the most extreme over random draws, unless the row they
            stand in says that it is ``exact``.
        how: names of entries, with wildcards, that say how something was measured or repeat another entry; they are not
            compared, like :data:`HOW`.
        fall_when_better: names of numbers, with wildcards, that a better network has smaller: losses, errors, norms,
            distances, curvatures.
        of_the_start: which of them, with wildcards, are the start's, so that nothing is better where they fall.
        observe: ``summary -> numbers``, where they do not stand in it as above.
        headline: ``summary ->`` a sentence above the table of bounds; empty if there is nothing to say.
        describe: ``summary -> lines`` below it. Several lines, a table say, come before those of quantities with one.
        plots: names of its plots (:data:`genbound.figures.one_run.PLOTS`).
        by_layer: its layers' values are a column of the report's table of layers.
    """

    fixed: bool = False
    extremes: tuple[str, ...] = ()
    how: tuple[str, ...] = ()
    fall_when_better: tuple[str, ...] = ()
    of_the_start: tuple[str, ...] = ()
    observe: Callable[[Summary], Iterable[Number]] | None = None
    headline: Callable[[Summary], str] = lambda summary: ""
    describe: Callable[[Summary], Sequence[str]] = lambda summary: ()
    plots: tuple[str, ...] = ()
    by_layer: bool = False

    def numbers(self, summary: Summary) -> list[Number]:
        """Every number that says what was found."""
        return list(every_number(summary, self) if self.observe is None else self.observe(summary))

    def falls_when_better(self, where: str) -> bool:
        """Whether the number at this place is smaller where the network is better."""
        return _named(where, self.fall_when_better) and not _named(where, self.of_the_start)

    def takes_extremes(self, summary: Summary) -> bool:
        """Whether what is computed from the summary rests on an extreme over random draws."""
        rows = (summary.get("layers") or {}).values()
        return bool(self.extremes) and any(not row.get("exact", False) for row in rows)


def every_number(summary: Summary, reading: Reading) -> Iterator[Number]:
    """Every number of a summary that does not say how it was measured."""
    for layer, row in (summary.get("layers") or {}).items():
        yield from _numbers(layer, row, reading)
    for row in summary.get("sigmas") or ():
        yield from _numbers(f"sigma={row['sigma']:g}", {k: v for k, v in row.items() if k != "sigma"}, reading)
    yield from _numbers("", {k: v for k, v in summary.items() if k not in ("layers", "sigmas")}, reading)


def _numbers(where: str, row: Mapping[str, Any], reading: Reading) -> Iterator[Number]:
    if "lower" in row and "upper" in row:
        if row["upper"] is not None:
            yield _interval(where, row, reading)
        row = {k: v for k, v in row.items() if k not in ("value", "lower", "upper")}
    for key, value in row.items():
        if _named(key, (*HOW, *reading.how)):
            continue
        place = ".".join(part for part in (where, "" if key == "value" else key) if part)
        if isinstance(value, Mapping):
            yield from _numbers(place, value, reading)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            extreme = (_named(key, reading.extremes) and not row.get("exact", False)) or not row.get("reliable", True)
            yield Number(place, float(value), *_errors(key, row, reading), extreme=extreme)


def _interval(where: str, row: Mapping[str, Any], reading: Reading) -> Number:
    """A certain interval, or the number in the middle of one that random draws move."""
    lower, upper, data = row["lower"], row["upper"], 0.0 if reading.fixed else None
    extreme = _named("value", reading.extremes) and not row.get("exact", False)
    if row.get("sem"):
        return Number(where, row["value"], row["sem"] + 0.5 * (upper - lower), data, extreme=extreme)
    return Number(where, row.get("value", upper), 0.0, data, lower, upper, extreme)


def _errors(key: str, row: Mapping[str, Any], reading: Reading) -> tuple[float, float | None]:
    """``(sem, data_sem)`` of an entry: they stand beside it."""
    if reading.fixed:
        return 0.0, 0.0  # of losses the sem speaks of other data than these, which do not change here
    prefix = "" if key == "value" else f"{key}_"
    return row.get(f"{prefix}sem") or 0.0, row.get(f"{prefix}data_sem")


def _named(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)
