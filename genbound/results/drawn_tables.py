"""Tables and lists as a terminal shows them: never wider than it is, whatever is in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbound.results.cells import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

TALL = 3.5  # lines a row above which a table is drawn as a list
KEPT = 19  # characters of a cell that is not broken as long as there is another way
COLOURS = {"certificate": "bold green", "done": "green", "begun": "yellow", "regression": "red", "missing": "red"}


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
        yield Padding(hanging(said, left), (0, 0, 0, 2))


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


def hanging(pairs: Iterable[tuple[str, str]], left: int, style: str = "") -> RenderableType:
    """Texts behind their names, each with its later lines below its first."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=left)
    grid.add_column(overflow="fold")
    for name, text in pairs:
        grid.add_row(Text(name, style), Text(plain(text.strip()), style))
    return grid
