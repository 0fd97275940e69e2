"""What commands print: Markdown into files and pipes, and on a terminal the same text in tables that fit it.

A width that the environment states (``COLUMNS``) is kept to off a terminal too. Colours are for terminals alone, and
for those whose user has not set ``NO_COLOR``. rich is loaded where something is drawn, and not before.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import click
from tabulate import tabulate

from genbound.results.cells import plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

TALL = 3.5  # lines a row above which a table is drawn as a list
KEPT = 19  # characters of a cell that is not broken as long as there is another way
COLOURS = {"certificate": "bold green", "done": "green", "begun": "yellow", "regression": "red", "missing": "red"}
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
    """Whether tables are drawn: on a terminal, or where the environment states a width."""
    return sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()


def _console() -> Console:
    from rich.console import Console

    # What a pipe carries is never coloured, whatever else the environment asks for.
    off = None if sys.stdout.isatty() else False
    return Console(
        file=sys.stdout, force_terminal=off, no_color=True if off is False else None, highlight=False, markup=False,
        emoji=False, soft_wrap=False,
    )  # fmt: skip


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
        grid.add_row(Text(asked, "bold"), Text(said, _tone(said)))
    yield Panel(grid, width=min(width, 120), border_style="cyan")


def _tone(said: str) -> str:
    return "green" if said.startswith("Guaranteed") else ""


def _footnotes(lines: list[str], width: int) -> Iterator[RenderableType]:
    found = [_pair(_FOOTNOTE, line) for line in lines]
    yield _hanging(found, max(len(mark) for mark, _ in found), "dim")


def _facts(lines: list[str], width: int) -> Iterator[RenderableType]:
    yield _hanging([_pair(_FACT, line) for line in lines], 14)


def _pair(pattern: re.Pattern[str], line: str) -> tuple[str, str]:
    found = pattern.match(line)
    return ("", line) if found is None else (found[1], found[2])


def _hanging(pairs: Iterable[tuple[str, str]], left: int, style: str = "") -> RenderableType:
    """Texts behind their names, each with its later lines below its first."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=left)
    grid.add_column(overflow="fold")
    for name, text in pairs:
        grid.add_row(Text(name, style), Text(plain(text.strip()), style))
    return grid


def _title(lines: list[str], width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    yield from (Text(plain(line[2:].strip()), "bold", overflow="fold") for line in lines)


def _lines(lines: list[str], width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    for line in lines:
        text = plain(line.rstrip())
        yield Text(text, "yellow" if text.startswith("Warning:") else "", overflow="fold")


_DRAWN = {"table": _table, "verdict": _verdict, "footnote": _footnotes, "fact": _facts, "title": _title, "line": _lines}


# -- tables that fit --------------------------------------------------------------------------------------------------


def fitted(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[RenderableType]:
    """A table in this many columns of characters; where it has too many columns, several that all begin with the first.

    Columns without a word in any row are left out.
    """
    kept = [i for i in range(len(head) or len(rows[0])) if i == 0 or any(row[i] for row in rows)]
    head, rows = [head[i] for i in kept] if head else [], [[row[i] for i in kept] for row in rows]
    parts = _parts(head, rows, width)
    prose = any(len(cell) > width // 2 for row in rows for cell in row[1:])
    if parts[0].lines(rows) > TALL * len(rows) or (len(parts) > 1 and prose):
        yield from _cards(head, rows, width)
        return
    for number, part in enumerate(parts):
        if number:
            yield ""
        places = part.places
        yield part.drawn([head[i] for i in places] if head else [], [[row[i] for i in places] for row in rows])


@dataclass(frozen=True)
class _Part:
    """Some columns of a table side by side.

    Attributes:
        places: which ones.
        widths: in characters.
        gap: blanks between two.
    """

    places: Sequence[int]
    widths: Sequence[int]
    gap: int

    def lines(self, rows: Iterable[Sequence[str]]) -> int:
        """How many lines the rows take, about."""
        return sum(
            max(-(-len(row[i]) // size) for i, size in zip(self.places, self.widths, strict=True)) for row in rows
        )

    def drawn(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        # The box parts columns by a blank of its own.
        table = Table(
            box=box.SIMPLE_HEAD if head else None, show_header=bool(head), show_edge=False, pad_edge=False,
            padding=(0, self.gap - bool(head), 0, 0), header_style="bold",
        )  # fmt: skip
        for i, size in enumerate(self.widths):
            table.add_column(Text(head[i]) if head else "", width=size, overflow="fold")
        for row in rows:
            cells = (_with_interval_below(cell, size) for cell, size in zip(row, self.widths, strict=True))
            table.add_row(*(Text(cell, _colour(cell)) for cell in cells))
        return table


def _cards(head: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> Iterator[RenderableType]:
    """Each row as lines below its first cell, a line a column: for sentences that no column has room for."""
    from rich.padding import Padding
    from rich.text import Text

    left = max(map(len, head[1:]), default=0) + 1
    for name, *cells in rows:
        yield Text(name, "bold")
        said = [(title, cell) for title, cell in zip(head[1:], cells, strict=True) if cell]
        yield Padding(_hanging(said, left), (0, 0, 0, 2))


def _with_interval_below(cell: str, size: int) -> str:
    """A value and its interval in two lines, where one does not hold both."""
    return cell.replace(" [", "\n[") if len(cell) > size else cell


def _colour(cell: str) -> str:
    return COLOURS.get(cell, "green" if cell.startswith("≤ ") else "dim" if cell == "/" else "")


def _parts(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[_Part]:
    """The tables that one is made of: one if that fits, with titles broken, then with less room, then with cells."""
    columns = list(zip(*([head] if head else []), *rows, strict=True))
    wanted = [max(map(len, cells)) for cells in columns]
    whole, words = (
        [_least(cells, bool(head), kept, width // 4 if i else (width - 2) // 2) for i, cells in enumerate(columns)]
        for kept in (KEPT, 0)
    )
    for smallest, gap in ((whole, 2), (whole, 1), (words, 2), (words, 1)):
        if _total(smallest, gap) <= width:
            return [_Part(range(len(columns)), _shared(smallest, wanted, width, gap), gap)]
    found: list[list[int]] = [[0]]
    for i in range(1, len(columns)):
        if len(found[-1]) > 1 and _total([whole[j] for j in (*found[-1], i)], 2) > width:
            found.append([0])
        found[-1].append(i)
    return [_Part(p, _shared([whole[i] for i in p], [wanted[i] for i in p], width, 2), 2) for p in found]


def _least(cells: Sequence[str], has_title: bool, kept: int, most: int) -> int:
    """Characters that a column needs, at most so many.

    Titles are broken between words, cells too if they have more characters than ``kept``.
    """
    needs = [_longest_word(cells[0])] if has_title else []
    needs += [len(cell) if len(cell) <= kept else _longest_word(cell) for cell in cells[has_title:]]
    return min(max(needs), most)


def _longest_word(text: str) -> int:
    return max(map(len, re.findall(r"\[[^\]]*\],?|\S+", text)), default=0)


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _shared(smallest: Sequence[int], wanted: Sequence[int], width: int, gap: int) -> list[int]:
    """Widths between the smallest and the wanted ones: what is left goes to each by what it lacks."""
    found = list(smallest)
    left = width - _total(found, gap)
    lacking = [max(0, want - has) for want, has in zip(wanted, found, strict=True)]
    if sum(lacking) <= left:
        return [has + more for has, more in zip(found, lacking, strict=True)]
    return [has + left * more // sum(lacking) for has, more in zip(found, lacking, strict=True)]
