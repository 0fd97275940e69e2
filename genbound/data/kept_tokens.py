"""The tokens of the texts that were used last: texts are tokenised when they are needed, however many there are."""

from __future__ import annotations

from typing import NamedTuple

MOST = 2**22  # tokens that are kept: some 400 MB


class Row(NamedTuple):
    """One text.

    Attributes:
        tokens: what the tokenizer makes of it: name -> one number a token.
        labels: one a token, where its words have labels.
    """

    tokens: dict[str, list[int]]
    labels: list[int] | None = None


class KeptTokens:
    """Tokenised texts by their numbers; above ``MOST`` tokens those go that were not asked for longest."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}  # what was asked for last stands at the end
        self._num = 0

    def __contains__(self, i: int) -> bool:
        return i in self._rows

    def __getitem__(self, i: int) -> Row:
        self._rows[i] = row = self._rows.pop(i)
        return row

    def __setitem__(self, i: int, row: Row) -> None:
        self._rows[i] = row
        self._num += len(row.tokens["input_ids"])

    def let_go(self, least: int) -> None:
        """Make room; the ``least`` rows that were asked for last stay, however long they are."""
        while self._num > MOST and len(self._rows) > least:
            self._num -= len(self._rows.pop(next(iter(self._rows))).tokens["input_ids"])
