"""Notes of a table's rows below it, each sentence once, by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

STOP = "; "


def footnotes(notes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Number the notes of rows; what several notes say in the same words is a footnote of its own.

    Args:
        notes: one for each row, its statements parted by semicolons; empty where there is nothing to say.

    Returns:
        For each row its marks (``"[1] [3]"``), and the footnotes, each a line that begins with its mark.
    """
    said = Counter(part for note in dict.fromkeys(notes) for part in dict.fromkeys(note.split(STOP)))
    numbers: dict[str, int] = {}
    marks = []
    for note in notes:
        parts = note.split(STOP) if note else []
        own = [part for part in parts if said[part] == 1]
        texts = [STOP.join(own)] * bool(own) + [part for part in parts if said[part] > 1]
        marks.append(" ".join(f"[{i}]" for i in sorted(numbers.setdefault(t, len(numbers) + 1) for t in texts)))
    return marks, [f"[{number}] {text}" for text, number in numbers.items()]
