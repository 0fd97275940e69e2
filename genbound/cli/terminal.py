"""What commands print: Markdown into files and pipes, and on a terminal the same text in tables that fit it.

Colours are for terminals alone, and for those whose user has not set ``NO_COLOR``. rich is loaded where something is
drawn, and not before.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import click
from tabulate import tabulate

from genbound.results.cells import plain
from genbound.results.drawn_tables import fitted, hanging

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_QUESTION = re.compile(r"^\*\*(.+?)\*\*\s*(.*)$")
_FOOTNOTE = re.compile(r"^(\[\d+\]) (.*)$")
_FACT = re.compile(r"^(\w[\w ,]{0,12}?) {2,}(\S.*)$")  # of `genbound inspect`: its name, and what it is


@dataclass(frozen=True)
class Columns:
    """A table that is no Markdown where it is piped: one for ``grep``, say.

    Attributes:
        head: titles of the columns; none where there are no titles.
        rows: cells as text.
        form: how tabulate writes it into a pipe.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    form: str = "simple"

    def __str__(self) -> str:
        """The table for a pipe."""
        return tabulate(self.rows, self.head, tablefmt=self.form, disable_numparse=True)


def show(*blocks: str | Columns) -> None:
    """Print Markdown and tables on standard output, a line or a table each."""
    if draws():
        console = _console()
        for drawn in _drawn(blocks, console.width):
            console.print(drawn)
    else:
        for block in blocks:
            click.echo(str(block))


def draws() -> bool:
    """Whether tables are drawn. A pipe gets Markdown, whatever width the environment states."""
    return sys.stdout.isatty()


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


# -- Markdown, as this package writes it ------------------------------------------------------------------------------


def _drawn(blocks: Iterable[str | Columns], width: int) -> Iterator[RenderableType]:
    for block in blocks:
        if isinstance(block, Columns):
            yield from fitted(block.head, block.rows, width)
        else:
            for kind, lines in groupby(block.splitlines() or [""], _kind):
                yield from _DRAWN[kind](list(lines), width)


def _kind(line: str) -> str:
    if line.startswith("| ") or line.startswith("|-"):
        return "table"
    if line.startswith("> "):
        return "verdict"
    if _FOOTNOTE.match(line):
        return "footnote"
    if _FACT.match(line):
        return "fact"
    return "title" if line.startswith("# ") else "line"


def _table(lines: list[str], width: int) -> Iterator[RenderableType]:
    head, _, *rows = [[plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    yield from fitted(head, rows, width)


def _verdict(lines: list[str], width: int) -> Iterator[RenderableType]:
    """The verdict in a box, each answer behind its question."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=18)
    grid.add_column(ratio=1, overflow="fold")
    for line in lines:
        asked, said = _pair(_QUESTION, line[2:].strip())
        grid.add_row(Text(asked, "bold"), Text(plain(said), _tone(said)))
    yield Panel(grid, width=min(width, 120), border_style="cyan")


def _tone(said: str) -> str:
    return "green" if said.startswith("Guaranteed") else ""


def _footnotes(lines: list[str], width: int) -> Iterator[RenderableType]:
    found = [_pair(_FOOTNOTE, line) for line in lines]
    yield hanging(found, max(len(mark) for mark, _ in found), "dim")


def _facts(lines: list[str], width: int) -> Iterator[RenderableType]:
    yield hanging([_pair(_FACT, line) for line in lines], 14)


def _pair(pattern: re.Pattern[str], line: str) -> tuple[str, str]:
    found = pattern.match(line)
    return ("", line) if found is None else (found[1], found[2])


def _title(lines: list[str], width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    yield from (Text(plain(line[2:].strip()), "bold", overflow="fold") for line in lines)


def _lines(lines: list[str], width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    for line in lines:
        text = plain(line.rstrip())
        yield Text(text, "yellow" if text.startswith("Warning:") else "", overflow="fold")


_DRAWN = {"table": _table, "verdict": _verdict, "footnote": _footnotes, "fact": _facts, "title": _title, "line": _lines}
