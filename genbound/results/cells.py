"""Text out of stored results, as cells of Markdown and of spreadsheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
from tabulate import tabulate

from genbound.errors import printable

FORMULA = ("=", "+", "-", "@")  # how a spreadsheet tells a formula from a text


def markdown_table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """A table of GitHub's Markdown; no cell ends its column, is HTML, or links to anywhere."""
    return tabulate(
        [[markdown(cell) for cell in row] for row in rows], [markdown(cell) for cell in head], tablefmt="github",
        disable_numparse=True,
    )  # fmt: skip


def markdown(text: str) -> str:
    """Text in one line of Markdown."""
    text = " ".join(printable(text).splitlines())
    return text.replace("|", "\\|").replace("<", "\\<").replace("](", "]\\(")


def plain(text: str) -> str:
    """What :func:`markdown` wrote, as it was."""
    return text.replace("\\|", "|").replace("\\<", "<").replace("]\\(", "](")


def write_csv(table: pd.DataFrame, to: Path | TextIO, index: bool = True) -> None:
    """A table as CSV, in which no text is a formula: an apostrophe stands before what would be one."""
    texts = [i for i, kind in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    found = table.copy()
    for i in texts:
        found.isetitem(i, pd.Series([_text(value) for value in table.iloc[:, i]], table.index, object))
    found.columns = [_text(name) for name in table.columns]
    found.index = pd.Index([_text(name) for name in table.index], name=table.index.name)
    found.to_csv(to, index=index)


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = printable(value)
    return f"'{value}" if value.lstrip().startswith(FORMULA) else value
