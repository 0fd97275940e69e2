"""Numbers as text: as many digits as their error allows, in tables, reports and notebooks alike; and lists of names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any


def digits(value: float, significant: int = 3) -> str:
    """A number with few digits, never more than it deserves in a table."""
    return f"{value:.{significant}g}"


def percent(value: float) -> str:
    """A fraction in per cent."""
    return f"{100 * value:.3g} %"


def with_error(value: float, sem: float) -> str:
    """Value and standard error, digits following the error."""
    if not sem or not math.isfinite(sem):
        return digits(value, 4)
    place = 1 - math.floor(math.log10(sem))
    if value and math.log10(abs(value)) < 5 and -1 <= place <= 8:
        return f"{value:.{max(0, place)}f} ± {sem:.{max(0, place)}f}"
    lead = max(0, math.floor(math.log10(abs(value) or sem)) - math.floor(math.log10(sem)) + 1)
    return f"{value:.{lead}e} ± {sem:.1e}"


def value_text(row: Mapping[str, Any]) -> str:
    """A bound's value, with its interval where that is wide enough to be seen; ``/`` where it does not exist.

    That of a certificate is a guarantee: ``≤``, and never less than it is.
    """
    if row["value"] is None:
        return "/" if row["log10"] is None else f"1e{row['log10']:.1f}"
    if row.get("kind") == "certificate":
        return f"≤ {rounded_up(row['value'])}"
    if row.get("at_least"):
        least = row["value"] if row["lower"] is None else row["lower"]
        return f"≥ {rounded_down(least)}" + (
            f" ({row['num_samples']} of {row['num_data']})" if "num_data" in row else ""
        )
    lower, upper = row["lower"], row["upper"]
    if lower is None or upper is None or upper - lower <= 5e-4 * abs(row["value"]):
        return digits(row["value"])
    width = upper - lower
    ends = at_place(lower, width, -1), at_place(upper, width, 1)
    value = ends[1] if row["value"] == upper else at_place(row["value"], width)
    return f"{value} [{ends[0]}, {ends[1]}]"


def rounded_down(value: float, significant: int = 3) -> str:
    """A lower limit, with few digits: never above the value."""
    if not value > 0:
        return digits(value)
    unit = 10.0 ** (math.floor(math.log10(value)) - significant + 1)
    text = digits(value, significant)
    return text if float(text) <= value else digits(float(text) - unit, significant)


def rounded_up(value: float, significant: int = 3) -> str:
    """An upper limit, with few digits: never below the value."""
    if not value > 0:
        return digits(value)
    unit = 10.0 ** (math.floor(math.log10(value)) - significant + 1)
    text = digits(value, significant)
    return text if float(text) >= value else digits(float(text) + unit, significant)


def surely(failure: float) -> str:
    """The probability that is left beside one of failure, with all its digits: never more than it is.

    Example:
        >>> surely(0.05), surely(2 * 0.0001), surely(1e-9)
        ('0.95', '0.9998', '0.999999999')
    """
    failure = float(f"{failure:.12g}")  # 3 times 0.05 is a little more than 0.15
    left = max(Decimal(0), 1 - Decimal(rounded_up(failure)))
    return f"{left:f}".rstrip("0").rstrip(".") if left else "0"


def gap_text(row: Mapping[str, Any]) -> str:
    """A bound's value over the measured gap; a value below it did not bound this network, a lower limit may have."""
    if row.get("gap_ratio") is None:
        ratio = ""
    else:
        ratio = f"≥ {rounded_down(row['gap_ratio'], 2)}" if row.get("at_least") else digits(row["gap_ratio"], 2)
    return f"{ratio}, below the gap" if row.get("below_gap") else ratio


def at_place(value: float, width: float, side: int = 0) -> str:
    """A number up to the first digit of the width of its interval.

    Args:
        value: the number.
        width: of its interval.
        side: -1 for a lower end, which is never shown above itself, 1 for an upper one, never below; else the nearest.
    """
    place = math.floor(math.log10(width))
    if -6 <= place < 3 and abs(value) < 1e5:
        kept = max(0, -place)
        unit, form = 10.0**-kept, f".{kept}f"
    else:
        size = math.floor(math.log10(abs(value))) if value else place
        lead = max(0, size - place)
        unit, form = 10.0 ** (size - lead), f".{lead}e"
    text = f"{value:{form}}"
    return text if side * (float(text) - value) >= 0 else f"{float(text) + side * unit:{form}}"


def yes_no(value: bool | None) -> str:
    """``yes``, ``no``, or nothing where the question makes no sense."""
    return "" if value is None else "yes" if value else "no"


def duration(seconds: float) -> str:
    """A time in the unit that a reader would use."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds <= 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names of many, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
