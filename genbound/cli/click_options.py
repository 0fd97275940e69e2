"""How options are declared to click, by every command."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

Decorator = Callable[[Any], Any]


class Names(click.ParamType):
    """Comma-separated names or numbers."""

    name = "A,B,…"

    def __init__(self, kind: type = str):
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple:
        """The names or numbers as a tuple; a list is taken as it is."""
        items = value if isinstance(value, list | tuple) else [part for part in str(value).split(",") if part.strip()]
        try:
            return tuple(self.kind(item.strip() if isinstance(item, str) else item) for item in items)
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of {self.kind.__name__} values")


class Measures(Names):
    """Comma-separated names of quantities and bounds; the shell completes the last of them."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """What the name that is being typed may become."""
        from genbound.bounds import BOUNDS
        from genbound.quantities import QUANTITIES

        before, comma, begun = incomplete.rpartition(",")
        known = [name for name in (*QUANTITIES, *BOUNDS) if name not in before.split(",")]
        return [CompletionItem(before + comma + name) for name in known if name.startswith(begun)]


def option(name: str, kind: Any, help: str, **more: Any) -> Decorator:
    """``--name`` with a type; a default that is given is shown."""
    return click.option(f"--{name}", type=kind, help=help, show_default="default" in more, **more)


def with_options(options: Iterable[Decorator]) -> Decorator:
    """Give a command these options, in this order."""

    def decorate(command: Any) -> Any:
        for add in reversed(list(options)):
            command = add(command)
        return command

    return decorate


DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
