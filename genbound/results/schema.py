"""What results.json looks like: a table of its entries, checked when a file is read.

Entries that the table does not name may hold any plain value, so that a newer quantity needs no line here; those that
it names with ``maybe`` may be missing, as they are in files of older versions. Every number is finite. The table is
published as a JSON Schema too: :func:`json_schema`, in ``results.schema.json`` beside this file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genbound.errors import GenboundError, first_line, printable
from genbound.results.entry_kinds import (
    LARGEST,
    PLAIN,
    Kind,
    Misshapen,
    Schema,
    anything,
    entries,
    inside,
    listing,
    mapping,
    number,
    or_null,
    plain,
    text,
    truth,
    whole,
)

MOST_DIGITS = 18  # of whole numbers
MEND = "restore the file, or measure again (for a baseline: check --update)"

# What arithmetic and formatting raise over values that no run has.
UNREADABLE = (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, IndexError, RecursionError)


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


# -- the table --------------------------------------------------------------------------------------------------------

MEASURED = number(-LARGEST, LARGEST)
ERROR = or_null(number(0, LARGEST))
BOUND_SIDE = or_null(number())
SIGMA = number(0, LARGEST)
NUMBERS: dict[str, Kind] = {
    "value": or_null(MEASURED), "lower": or_null(MEASURED), "upper": or_null(MEASURED), "sample": or_null(whole(0)),
    "exact": or_null(truth), "reliable": or_null(truth), "reason": or_null(text),
}  # fmt: skip


def _measured(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        plain(value, where)
        return
    for key, item in value.items():
        text(key, f"a name in {where}")
        _kind(key)(item, inside(where, key))


def _row(value: Any, where: str) -> None:
    anything(value, where)
    measured(value, where)


def _sigma_row(value: Any, where: str) -> None:
    entries({"sigma": SIGMA}, {}, Kind(lambda *_: None))(value, where)
    measured(value, where)


def _kind(key: str) -> Kind:
    """What an entry of a quantity must be, by its name."""
    if key in NUMBERS:
        return NUMBERS[key]
    return next((kind for pattern, kind in PATTERNS.items() if re.search(pattern, key)), measured)


PATTERNS = {"^sem$|_sem$": ERROR, "^num_": or_null(number(0, LARGEST))}
measured = Kind(_measured, {"$ref": "#/$defs/measured"})  # what a quantity found, or a part of it
row = Kind(_row, {"$ref": "#/$defs/row"})  # the numbers of a layer
with_sigma = Kind(_sigma_row, row.schema | {"required": ["sigma"], "properties": {"sigma": SIGMA.schema}})
NUMBERS |= {"layers": or_null(mapping(row)), "sigmas": or_null(listing(with_sigma))}
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


def json_schema() -> Schema:
    """The table as a JSON Schema (2020-12), for readers in other languages.

    It says less than :func:`check_content` in one point: JSON Schema knows no infinity and no NaN, which are no JSON.
    """
    group = {
        "type": "object",
        "properties": {name: kind.schema for name, kind in NUMBERS.items()},
        "patternProperties": {pattern: kind.schema for pattern, kind in PATTERNS.items()},
        "additionalProperties": measured.schema,
    }
    no_group = {"anyOf": [kind for kind in PLAIN["anyOf"] if kind.get("type") != "object"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://github.com/genbound/genbound/blob/main/genbound/results/results.schema.json",
        "title": "results.json of genbound, schema version 1",
        **RESULTS.schema,
        "$defs": {"plain": PLAIN, "row": group, "measured": {"anyOf": [group, no_group]}},
    }
