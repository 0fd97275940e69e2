"""What results.json looks like: a table of its entries, checked when a file is read.

Entries that the table does not name may hold any plain value, so that a newer quantity needs no line here; those that
it names with ``maybe`` may be missing, as they are in files of older versions. Every number is finite.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genbound.errors import GenboundError, first_line, printable

LARGEST = 1e300  # of what is measured: sums and products of such numbers must be numbers
MOST_DIGITS = 18  # of whole numbers
MEND = "restore the file, or measure again (for a baseline: check --update)"

# What arithmetic and formatting raise over values that no run has.
UNREADABLE = (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, IndexError, RecursionError)

Check = Callable[[Any, str], None]


class Misshapen(Exception):
    """An entry is not what it must be."""

    def __init__(self, where: str, value: Any, wanted: str):
        shown = repr(value)
        super().__init__(f"{where} is {shown if len(shown) <= 60 else shown[:57] + '…'}, not {wanted}")


def read_json(file: Path) -> dict[str, Any]:
    """The entries of a JSON file, every number finite.

    Raises:
        GenboundError: it cannot be read, or is no JSON with entries.
    """

    def refuse(text: str) -> Any:
        raise ValueError(f"it holds {text[:20]}, which is no number in JSON")

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    def whole(text: str) -> int:
        return int(text) if len(text.lstrip("-")) <= MOST_DIGITS else refuse(text)

    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=refuse, parse_float=number, parse_int=whole)
        if "\\" in text or printable(text) != text:
            content = _seen(content)
    except OSError as error:
        raise GenboundError(f"{file} cannot be read ({error.strerror}): check its permissions") from error
    except RecursionError as error:
        raise GenboundError(f"{file} is not a results.json (it is nested too deeply): {MEND}") from error
    except ValueError as error:  # also of bytes that are no UTF-8
        raise GenboundError(f"{file} is not a results.json ({error}): {MEND}") from error
    if not isinstance(content, dict):
        raise GenboundError(f"{file} is not a results.json (it holds {type(content).__name__}): {MEND}")
    return content


def _seen(value: Any) -> Any:
    """Names and texts of somebody's file in one line each, with what cannot be seen written out."""
    if isinstance(value, dict):
        return {_seen(key): _seen(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_seen(item) for item in value]
    return re.sub(r"[\t\n]", " ", printable(value)) if isinstance(value, str) else value


def check_content(content: Mapping[str, Any], file: Path) -> None:
    """Refuse a results.json whose entries are not what readers count on.

    Raises:
        GenboundError: naming the first entry that is missing or misshapen.
    """
    try:
        RESULTS(content, "")
    except Misshapen as error:
        raise GenboundError(f"{file}: {error}; {MEND}") from error
    except RecursionError as error:
        raise GenboundError(f"{file} is nested too deeply: {MEND}") from error


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Refuse stored values that reading stumbles over: what one quantity's own lines read is in no table.

    Args:
        what: whose values, for the message.
    """
    try:
        yield
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise GenboundError(f"{what}: an entry is missing or makes no sense ({reason}); {MEND}") from error


# -- kinds of entries -------------------------------------------------------------------------------------------------


def text(value: Any, where: str) -> None:
    """A string that can be printed."""
    if not isinstance(value, str):
        raise Misshapen(where, value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Misshapen(where, value, "a text that can be written") from None


def truth(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Misshapen(where, value, "true or false")


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number between two limits, these included."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Misshapen(where, value, "a number")
        if not least <= value <= most:
            raise Misshapen(where, value, f"between {least:g} and {most:g}")

    return check


def whole(least: int | None = None) -> Check:
    """A whole number, at least this one."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Misshapen(where, value, "a whole number")
        if least is not None and value < least:
            raise Misshapen(where, value, f"at least {least}")

    return check


def or_null(kind: Check) -> Check:
    """That, or null where it does not exist."""
    return lambda value, where: None if value is None else kind(value, where)


def listing(kind: Check) -> Check:
    """A list of such."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise Misshapen(where, value, "a list")
        for index, item in enumerate(value):
            kind(item, f"{where}[{index}]")

    return check


def mapping(kind: Check) -> Check:
    """Names with such."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Misshapen(where, value, "a group of entries")
        for key, item in value.items():
            text(key, f"a name in {where}")
            kind(item, _inside(where, key))

    return check


def plain(value: Any, where: str) -> None:
    """Whatever JSON has, with texts that can be written and numbers of a size that can be measured."""
    if isinstance(value, dict):
        mapping(plain)(value, where)
    elif isinstance(value, list):
        listing(plain)(value, where)
    elif isinstance(value, str):
        text(value, where)
    elif value is not None and not isinstance(value, bool):
        number(-LARGEST, LARGEST)(value, where)


def entries(always: Mapping[str, Check], maybe: Mapping[str, Check], rest: Check = plain) -> Check:
    """Entries of which some are always there, and others of any kind."""
    known = {**always, **maybe}

    def check(value: Any, where: str) -> None:
        mapping(lambda *_: None)(value, where)
        for key in always:
            if key not in value:
                raise Misshapen(where or "it", sorted(value), f"complete: it lacks the entry {key}")
        for key, item in value.items():
            known.get(key, rest)(item, _inside(where, key))

    return check


def _inside(where: str, key: str) -> str:
    return f"{where}.{key[:80]}" if where else key[:80]


# -- the table --------------------------------------------------------------------------------------------------------

MEASURED = number(-LARGEST, LARGEST)
ERROR = or_null(number(0, LARGEST))
BOUND_SIDE = or_null(number())
NUMBERS: dict[str, Check] = {
    "value": or_null(MEASURED), "lower": or_null(MEASURED), "upper": or_null(MEASURED), "sample": or_null(whole(0)),
    "exact": or_null(truth), "reliable": or_null(truth), "reason": or_null(text),
}  # fmt: skip


def measured(value: Any, where: str) -> None:
    """What a quantity found, or a part of it; numbers have their errors beside them."""
    if not isinstance(value, dict):
        plain(value, where)
        return
    for key, item in value.items():
        text(key, f"a name in {where}")
        _kind(key)(item, _inside(where, key))


def _kind(key: str) -> Check:
    """What an entry of a quantity must be, by its name."""
    if key in NUMBERS:
        return NUMBERS[key]
    if key == "sem" or key.endswith("_sem"):
        return ERROR
    if key.startswith("num_"):
        return or_null(number(0, LARGEST))
    return measured


def row(value: Any, where: str) -> None:
    """The numbers of a layer."""
    mapping(lambda *_: None)(value, where)
    measured(value, where)


def sigma_row(value: Any, where: str) -> None:
    """The numbers of a sigma."""
    entries({"sigma": number(0, LARGEST)}, {}, lambda *_: None)(value, where)
    measured(value, where)


NUMBERS |= {"layers": or_null(mapping(row)), "sigmas": or_null(listing(sigma_row))}
FORM = entries({"log10": BOUND_SIDE}, {"note": text}, BOUND_SIDE)
BOUND = entries(
    {
        "value": BOUND_SIDE, "lower": BOUND_SIDE, "upper": BOUND_SIDE, "log10": BOUND_SIDE, "bounds": text,
        "kind": text, "vacuous": or_null(truth), "note": text, "reference": text, "forms": mapping(FORM),
    },
    {
        "gap_ratio": BOUND_SIDE, "below_gap": or_null(truth), "at_least": truth, "num_samples": whole(0),
        "num_data": whole(0), "over_samples": entries({"lower": BOUND_SIDE, "upper": BOUND_SIDE}, {}),
    },
)  # fmt: skip
LAYER = entries(
    {"name": text, "shape": listing(whole(0))},
    {
        "kind": text, "positive_semidefinite": or_null(truth), "curved_by": or_null(text),
        "num_uses": or_null(whole(0)),
    },
)  # fmt: skip
FILE = entries({}, {"path": or_null(text), "sha256": or_null(text)})
CONFIG = entries(
    {"num_samples": whole(0), "num_data": whole(0), "seed": whole(), "convention": text, "loss_range": entries(
        {"value": or_null(MEASURED), "kind": text}, {"over": text}
    )},
    {
        "loss": or_null(text), "head": text, "head_note": or_null(text), "remarks": listing(text), "dtype": text,
        "device": text, "delta": number(0, 1), "batch_size": or_null(whole(1)), "options": mapping(mapping(plain)),
        "samples_sha256": or_null(text), "hyperparameters": mapping(plain),
    },
)  # fmt: skip
RESULTS = entries(
    {
        "schema_version": whole(1), "genbound": text, "config": CONFIG, "checkpoint": FILE, "init": FILE,
        "data": entries(
            {},
            {
                "spec": or_null(text), "sha256": or_null(text), "test_sha256": or_null(text),
                "shown": or_null(mapping(mapping(plain))),
            },
        ),
        "layers": listing(LAYER), "quantities": mapping(row), "bounds": mapping(BOUND),
        "cost": entries({}, {"seconds": mapping(number(0, LARGEST)), "peak_memory_bytes": whole(0)}),
    },
    {"notes": mapping(text)},
)  # fmt: skip
