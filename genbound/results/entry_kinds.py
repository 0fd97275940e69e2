"""Kinds of entries of a JSON file: what each refuses, in words, and the same as a JSON Schema."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]

LARGEST = 1e300  # of what is measured: sums and products of such numbers must be numbers


class Misshapen(Exception):
    """An entry is not what it must be."""

    def __init__(self, where: str, value: Any, wanted: str):
        shown = repr(value)
        super().__init__(f"{where} is {shown if len(shown) <= 60 else shown[:57] + '…'}, not {wanted}")


@dataclass(frozen=True)
class Kind:
    """What an entry must be.

    Attributes:
        check: raises :class:`Misshapen` where it is not; takes the entry and where it stands.
        schema: the same in JSON Schema (2020-12), as far as that can say it.
    """

    check: Callable[[Any, str], None]
    schema: Schema = field(default_factory=dict)

    def __call__(self, value: Any, where: str) -> None:
        """Refuse an entry that is not of this kind."""
        self.check(value, where)


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise Misshapen(where, value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Misshapen(where, value, "a text that can be written") from None


def _truth(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise Misshapen(where, value, "true or false")


text = Kind(_text, {"type": "string"})
truth = Kind(_truth, {"type": "boolean"})


def number(least: float = -math.inf, most: float = math.inf) -> Kind:
    """A finite number between two limits, these included."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Misshapen(where, value, "a number")
        if not least <= value <= most:
            raise Misshapen(where, value, f"between {least:g} and {most:g}")

    limits = {"minimum": least, "maximum": most}
    return Kind(check, {"type": "number"} | {name: limit for name, limit in limits.items() if math.isfinite(limit)})


def whole(least: int | None = None) -> Kind:
    """A whole number, at least this one."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Misshapen(where, value, "a whole number")
        if least is not None and value < least:
            raise Misshapen(where, value, f"at least {least}")

    return Kind(check, {"type": "integer"} | ({} if least is None else {"minimum": least}))


def or_null(kind: Kind) -> Kind:
    """That, or null where it does not exist."""
    return Kind(
        lambda value, where: None if value is None else kind(value, where),
        {"anyOf": [kind.schema, {"type": "null"}]},
    )


def listing(kind: Kind) -> Kind:
    """A list of such."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise Misshapen(where, value, "a list")
        for index, item in enumerate(value):
            kind(item, f"{where}[{index}]")

    return Kind(check, {"type": "array", "items": kind.schema})


def mapping(kind: Kind) -> Kind:
    """Names with such."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Misshapen(where, value, "a group of entries")
        for key, item in value.items():
            text(key, f"a name in {where}")
            kind(item, inside(where, key))

    return Kind(check, {"type": "object", "additionalProperties": kind.schema})


def _plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        mapping(plain)(value, where)
    elif isinstance(value, list):
        listing(plain)(value, where)
    elif isinstance(value, str):
        text(value, where)
    elif value is not None and not isinstance(value, bool):
        number(-LARGEST, LARGEST)(value, where)


# Whatever JSON has, with numbers of a size that can be measured. A kind that holds itself is told by name.
plain = Kind(_plain, {"$ref": "#/$defs/plain"})
PLAIN: Schema = {
    "anyOf": [
        {"type": ["string", "boolean", "null"]},
        number(-LARGEST, LARGEST).schema,
        listing(plain).schema,
        mapping(plain).schema,
    ]
}


def entries(always: Mapping[str, Kind], maybe: Mapping[str, Kind], rest: Kind = plain) -> Kind:
    """Entries of which some are always there, and others of the kind ``rest``."""
    known = {**always, **maybe}

    def check(value: Any, where: str) -> None:
        anything(value, where)
        for key in always:
            if key not in value:
                raise Misshapen(where or "it", sorted(value), f"complete: it lacks the entry {key}")
        for key, item in value.items():
            known.get(key, rest)(item, inside(where, key))

    return Kind(
        check,
        {
            "type": "object",
            "properties": {name: kind.schema for name, kind in known.items()},
            "additionalProperties": rest.schema,
        }
        | ({"required": list(always)} if always else {}),
    )


def inside(where: str, key: str) -> str:
    """Where an entry of a group stands."""
    return f"{where}.{key[:80]}" if where else key[:80]


anything = mapping(Kind(lambda *_: None))
