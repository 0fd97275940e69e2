"""What bounds give back: a value with its sides and its forms, from logarithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from genbound.bounds.base import BoundValue, NotAvailable
from genbound.bounds.logs import ZERO, power

IS_ZERO = "zero"  # the last note of a form that has no logarithm since it is 0
# How a form is made: a function that gives its log10, or with a note.
Form = Callable[[], float] | tuple[Callable[[], float], str]


def absent(reason: str) -> Callable[[], float]:
    """A form that does not exist: the table prints the reason."""

    def refuse() -> float:
        raise NotAvailable(reason)

    return refuse


def form(value: float, note: str = "") -> dict[str, Any]:
    """A form from its logarithm. Zero has no logarithm: the note says that it is zero."""
    value = float(value)
    notes = [note] if note else []
    if math.isnan(value) or value == math.inf:
        return {"log10": None, "note": "; ".join([*notes, "not finite"])}
    if value == ZERO:
        return {"log10": None, "note": "; ".join([*notes, IS_ZERO])}
    return {"log10": value} | ({"note": note} if note else {})


def forms_of(functions: Mapping[str, Form]) -> dict[str, dict]:
    """Name -> form. A function that raises :class:`NotAvailable` gives a null form with the reason."""
    found = {}
    for name, entry in functions.items():
        function, note = entry if isinstance(entry, tuple) else (entry, "")
        try:
            found[name] = form(function(), note)
        except NotAvailable as missing:
            found[name] = {"log10": None, "note": str(missing)}
    return found


def bound_value(
    main: Callable[[str], float],
    forms: Mapping[str, Form],
    note: str = "",
    empirical: float | None = None,
) -> BoundValue:
    """The value of a bound whose headline is its leading term.

    Args:
        main: side (``lower`` or ``upper``) -> log10 of the leading term.
        forms: the other forms.
        note: doubts.
        empirical: the empirical term, where it is not the training loss or error.
    """
    lower, upper = float(main("lower")), float(main("upper"))
    if math.isnan(upper) or upper == math.inf:
        raise NotAvailable("the value is not finite")
    named = {"main_term": form(upper, note)} | forms_of(forms)
    for name, entry in named.items():
        if name.startswith("main_term") and note:
            entry.setdefault("note", note)
    exponent = None if upper == ZERO else upper
    return BoundValue(power(upper), power(lower), power(upper), exponent, note, named, empirical)
