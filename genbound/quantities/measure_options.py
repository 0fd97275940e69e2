"""Options of quantities: how a quantity declares them, and how values that a user gives become theirs."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from genbound.errors import GenboundError, did_you_mean


@dataclass(frozen=True)
class NoOptions:
    """There is nothing to choose."""


def option(default: Any, meaning: str, *, flag: str = "", choices: Sequence[str] = ()) -> Any:
    """A field of an options dataclass.

    Args:
        default: its value where none is given.
        meaning: one line for ``genbound list options``.
        flag: short form on the command line; every option has the long one, ``--set QUANTITY.OPTION=VALUE``.
        choices: all values there are, if it is a word.
    """
    return field(default=default, metadata={"meaning": meaning, "flag": flag, "choices": tuple(choices)})


def check_options(options: Any, **least: float) -> None:
    """Refuse options below the least value that makes sense; what must be positive has least 0, which is excluded."""
    for name, limit in least.items():
        value = getattr(options, name)
        if not (value > 0 if limit == 0 else value >= limit):
            raise GenboundError(f"{name} {value:g} must be {'positive' if limit == 0 else f'at least {limit:g}'}")


def read_options(quantity: str, kind: type, given: Mapping[str, Any]) -> Any:
    """A quantity's options.

    Args:
        quantity: its name, for messages.
        kind: the dataclass of its options.
        given: option -> value.

    Returns:
        An instance of ``kind``; what is not given has its default.

    Raises:
        GenboundError: an option does not exist, or its value is of the wrong kind or makes no sense.
    """
    values = {name: read_option(quantity, kind, name, value) for name, value in given.items()}
    try:
        return kind(**values)
    except GenboundError as error:
        raise GenboundError(f"{quantity}: {error}") from error


def read_option(quantity: str, kind: type, name: str, value: Any, text: bool = False) -> Any:
    """The value of one option as its type.

    Args:
        quantity: its name, for messages.
        kind: the dataclass of its options.
        name: of the option.
        value: what is given.
        text: numbers may be written, ``0.01``, and several as ``0.01,0.02``.

    Raises:
        GenboundError: the option does not exist, or its value is of the wrong kind.
    """
    known = {f.name: f for f in fields(kind)}
    if name not in known:
        listed = f"its options are {', '.join(known)}" if known else "it has none"
        raise GenboundError(f"{quantity} has no option {name!r}{did_you_mean(name, known)}; {listed}")
    wanted = typing.get_type_hints(kind)[name]
    try:
        found = _convert(value, wanted, text)
    except (TypeError, ValueError, OverflowError):
        raise GenboundError(f"{quantity}.{name} must be {_called(wanted)}, not {value!r}") from None
    choices = known[name].metadata.get("choices", ())
    if choices and found not in choices:
        hint = did_you_mean(found, choices)
        raise GenboundError(f"{quantity}.{name} {found!r} is unknown{hint}; use {' or '.join(choices)}")
    return found


def _float(value: Any) -> float:
    if isinstance(value, bool) or math.isnan(float(value)):
        raise ValueError
    return float(value)


def _int(value: Any) -> int:
    if _float(value) != int(_float(value)):
        raise ValueError
    return int(_float(value))


def _bool(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError
    return str(value).lower() == "true"


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


CONVERTERS = {
    float: (_float, "a number"),
    int: (_int, "a whole number"),
    bool: (_bool, "true or false"),
    str: (_str, "a word"),
}


def _convert(value: Any, wanted: Any, text: bool) -> Any:
    """A value as the type of a field: one of :data:`CONVERTERS`, or a tuple of one."""
    if isinstance(value, str) and wanted is not str and not text:
        raise TypeError
    if typing.get_origin(wanted) is not tuple:
        return CONVERTERS[wanted][0](value)
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, Iterable) else [value]
    items = [item for item in items if not isinstance(item, str) or item.strip()]
    return tuple(_convert(item, typing.get_args(wanted)[0], text) for item in items)


def _called(wanted: Any) -> str:
    if typing.get_origin(wanted) is not tuple:
        return CONVERTERS[wanted][1]
    return f"A,B,…, each {_called(typing.get_args(wanted)[0])}"


def as_text(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return (
        ",".join(map(as_text, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
