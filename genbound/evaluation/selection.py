"""What an evaluation is about: the quantities that are needed, their options, and the bounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from genbound.bounds import BOUNDS
from genbound.errors import GenboundError, did_you_mean
from genbound.quantities import QUANTITIES
from genbound.quantities.measure_options import read_options

DEFAULT = "default"  # stands for all that is measured where nothing is named


@dataclass(frozen=True)
class Selection:
    """What is measured and what is concluded.

    Attributes:
        options: quantity -> its options, in the order in which they are measured.
        bounds: names of bounds.
        asked: quantities that were named, or given an option, and all they build on; the others are there by default.
        given: quantity -> the options that were given.
    """

    options: dict[str, Any]
    bounds: list[str]
    asked: frozenset[str] = frozenset()
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def remarks(self) -> tuple[str, ...]:
        """That options were given which change nothing."""
        idle = _idle(list(self.options), self.given)
        return (f"an option of what is not measured has no effect: {_places(idle)}",) if idle else ()

    def behind(self, name: str) -> dict[str, dict[str, Any]]:
        """The options of a quantity and of all it builds on, by name: what its value depends on."""
        found = {name: asdict(self.options[name])}
        for required in QUANTITIES[name].requires:
            found |= self.behind(required)
        return found


def select(measures: str | Iterable[str] | None, options: Mapping[str, Mapping[str, Any]]) -> Selection:
    """The quantities and bounds that are named and all they need.

    Args:
        measures: names of either, also with wildcards (``trace*``), and ``default`` for all but the quantities on
            request; several in one text have commas between them; ``None`` means ``default``.
        options: quantity -> its options, where they are not the defaults; also of quantities that are not measured,
            but for those on request: who says something of one must ask for it.

    Raises:
        GenboundError: a name or an option that does not exist, or a value that makes no sense.
    """
    measures = _items(measures)
    names, bounds = resolve(measures)
    chosen = {name: get_options(name, options.get(name, {})) for name in (*names, *options)}
    _check_requested(names, options)
    asked = _with_required([*_asked(measures), *(name for name in options if options[name])])
    return Selection({name: chosen[name] for name in names}, bounds, frozenset(asked), options)


def _items(measures: str | Iterable[str] | None) -> list[str]:
    """What was named, one by one: a text would else be read letter by letter."""
    if measures is None:
        return [DEFAULT]
    return [name.strip() for name in measures.split(",") if name.strip()] if isinstance(measures, str) else [*measures]


def _asked(measures: str | Iterable[str] | None) -> list[str]:
    """The quantities that the named measures are or read, but for those that ``default`` stands for."""
    named = [name for item in _items(measures) if item != DEFAULT for name in _named(item)]
    return [r for name in named for r in (BOUNDS[name].requires if name in BOUNDS else (name,))]


def _with_required(names: Iterable[str]) -> set[str]:
    """Quantities and all they build on."""
    needed: set[str] = set()
    more = set(names)
    while more:
        needed |= more
        more = {r for name in needed for r in QUANTITIES[name].requires} - needed
    return needed


def _idle(names: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The options of quantities that are not measured, unless a short form is heard by another that is."""
    heard = [item for name in names for item in options.get(name, {}).items()]
    return {
        name: given
        for name, given in options.items()
        if given and name not in names and not all(item in heard for item in given.items())
    }


def _places(options: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name}.{option}" for name, given in options.items() for option in given)


def _check_requested(names: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse options of quantities on request that nobody asked for: they would be without effect.

    A short form that several quantities share is fine if one of them is measured.
    """
    idle = {name: given for name, given in _idle(names, options).items() if QUANTITIES[name].on_request}
    if idle:
        raise GenboundError(
            f"{_places(idle)} is given for what is measured on request, and nobody asks for it: "
            f"add --measures default,{next(iter(idle))}"
        )


def resolve(measures: str | Iterable[str] | None) -> tuple[list[str], list[str]]:
    """``(quantities in the order they are measured, bounds)`` that a selection of either needs."""
    wanted = list(dict.fromkeys(name for item in _items(measures) for name in _named(item)))
    if not wanted:
        raise GenboundError("no measures are named: leave them out for all, or see `genbound list`")
    if DEFAULT in wanted:
        default = [*(name for name, quantity in QUANTITIES.items() if not quantity.on_request), *BOUNDS]
        wanted = list(dict.fromkeys([*default, *(name for name in wanted if name != DEFAULT)]))
    for name in wanted:
        if name not in QUANTITIES and name not in BOUNDS:
            known = [*QUANTITIES, *BOUNDS]
            hint = did_you_mean(name, [*known, DEFAULT])
            raise GenboundError(f"unknown measure {name!r}{hint}; `genbound list` shows all {len(known)}")
    needed = _with_required(r for name in wanted for r in (BOUNDS[name].requires if name in BOUNDS else (name,)))
    return [name for name in QUANTITIES if name in needed], [name for name in BOUNDS if name in wanted]


def _named(item: str) -> list[str]:
    """The quantities and bounds that a name with wildcards fits; another name is itself, whether it exists or not."""
    if not any(sign in item for sign in "*?["):
        return [item]
    return [name for name in dict.fromkeys([*QUANTITIES, *BOUNDS]) if fnmatchcase(name, item)] or [item]


def get_options(name: str, given: Mapping[str, Any]) -> Any:
    """A quantity's options; what is not given has its default (:mod:`genbound.quantities.measure_options`)."""
    if name not in QUANTITIES:
        hint = did_you_mean(name, QUANTITIES)
        raise GenboundError(f"options are given for {name!r}, which is no quantity{hint}; `genbound list` shows all")
    return read_options(name, QUANTITIES[name].options, given)
