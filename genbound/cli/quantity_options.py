"""Options of quantities as a user says them: ``--set QUANTITY.OPTION=VALUE``, short forms, ``set:`` in a config file.

What the command line says wins over the config file. Within one of the two, a short form and ``--set`` that say
different things are refused: neither is more explicit than the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any

import click
from click.core import ParameterSource

from genbound.cli.click_options import Decorator, Names
from genbound.cli.terminal import Columns
from genbound.errors import GenboundError, did_you_mean
from genbound.quantities import QUANTITIES
from genbound.quantities.measure_options import as_text, read_option

CONFIG = "genbound.cli.quantity_options"  # where click keeps what the config file sets


# -- what there is ----------------------------------------------------------------------------------------------------


def every_option() -> Iterator[tuple[str, Field]]:
    """``(quantity, field)`` of every option in the catalogue."""
    for name, quantity in QUANTITIES.items():
        yield from ((name, option) for option in fields(quantity.options))


def short_forms() -> list[Decorator]:
    """The options of the command line that quantities ask for; several may ask for the same one."""
    wanted: dict[str, tuple[Field, list[str]]] = {}
    for name, option in every_option():
        if option.metadata.get("flag"):
            wanted.setdefault(option.metadata["flag"], (option, []))[1].append(f"{name}.{option.name}")
    return [_short_form(option, places) for option, places in wanted.values()]


def _short_form(option: Field, places: Sequence[str]) -> Decorator:
    meaning, choices = option.metadata["meaning"], option.metadata["choices"]
    several = isinstance(option.default, tuple)
    kind: Any = click.Choice(choices) if choices else Names(float) if several else type(option.default)
    return click.option(
        option.metadata["flag"],
        _parameter(option),
        type=kind,
        default=as_text(option.default) if several else option.default,
        show_default=True,
        help=f"{meaning[0].upper()}{meaning[1:]} ({', '.join(places)}).",
    )


def _parameter(option: Field) -> str:
    return option.metadata["flag"].removeprefix("--").replace("-", "_")


def list_options(quantity: str | None = None) -> str | Columns:
    """One line for each option: what ``--set`` calls it, its default, its short form, what it means."""
    if quantity is not None and quantity not in QUANTITIES:
        raise GenboundError(f"unknown quantity {quantity!r}{did_you_mean(quantity, QUANTITIES)}: see `genbound list`")
    rows = [
        [f"{name}.{option.name}", as_text(option.default), option.metadata.get("flag", ""), option.metadata["meaning"]]
        for name, option in every_option()
        if quantity in (None, name)
    ]
    if not rows:
        return f"{quantity} has no options"
    return Columns(["option", "default", "short form", "meaning"], rows, "plain")


# -- what is given ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One option that a user gave.

    Attributes:
        quantity, option: which one.
        value: converted to its type.
        said: how it was said, for messages.
    """

    quantity: str
    option: str
    value: Any
    said: str

    @classmethod
    def read(cls, place: str, value: Any, said: str) -> Setting:
        """From ``QUANTITY.OPTION`` and a value as text or out of YAML."""
        quantity, dot, option = place.partition(".")
        if not dot or not option:
            raise GenboundError(f"{said} is not understood: write QUANTITY.OPTION=VALUE, see `genbound list options`")
        if quantity not in QUANTITIES:
            hint = did_you_mean(quantity, QUANTITIES)
            raise GenboundError(f"{said}: there is no quantity {quantity!r}{hint}; see `genbound list options`")
        found = read_option(quantity, QUANTITIES[quantity].options, option, value, text=True)
        return cls(quantity, option, found, said)


def read_config_entry(entry: Any, path: str) -> list[Setting]:
    """``set:`` of a config file: ``{QUANTITY: {OPTION: VALUE}}`` or ``{QUANTITY.OPTION: VALUE}``."""
    if not isinstance(entry, Mapping):
        raise GenboundError(f"--config {path}: set must hold `QUANTITY: {{OPTION: VALUE}}`, not {entry!r}")
    found = []
    for place, value in entry.items():
        inner = value if isinstance(value, Mapping) else {None: value}
        for option, one in inner.items():
            whole = str(place) if option is None else f"{place}.{option}"
            found.append(Setting.read(whole, one, f"set {whole} in {path}"))
    return found


def quantity_options(context: click.Context) -> dict[str, dict[str, Any]]:
    """Quantity -> option -> value, of all that was said on the command line and in the config file."""
    options: dict[str, dict[str, Any]] = {}
    in_file = [*context.meta.get(CONFIG, []), *_short(context, ParameterSource.DEFAULT_MAP)]
    on_line = [*_long(context.params["set"]), *_short(context, ParameterSource.COMMANDLINE)]
    for settings in (in_file, on_line):
        for setting in _agreeing(settings):
            options.setdefault(setting.quantity, {})[setting.option] = setting.value
    return options


def _long(items: Iterable[str]) -> Iterator[Setting]:
    for item in items:
        place, equals, value = item.partition("=")
        yield Setting.read(place.strip() if equals else "", value.strip(), f"--set {item}")


def _short(context: click.Context, source: ParameterSource) -> Iterator[Setting]:
    for quantity, option in every_option():
        name = _parameter(option) if option.metadata.get("flag") else None
        if name in context.params and context.get_parameter_source(name) is source:
            value = context.params[name]
            yield Setting(quantity, option.name, value, f"{option.metadata['flag']} {as_text(value)}")


def _agreeing(settings: Iterable[Setting]) -> Iterable[Setting]:
    """The same settings, refused where two of them say different things of one option."""
    found: dict[tuple[str, str], Setting] = {}
    for setting in settings:
        other = found.setdefault((setting.quantity, setting.option), setting)
        if other.value != setting.value:
            raise GenboundError(f"{other.said} and {setting.said} contradict each other: give one of them")
    return found.values()
