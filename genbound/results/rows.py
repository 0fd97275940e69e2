"""The rows of bounds as results hold them: their entries are attributes too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genbound.bounds import BOUNDS
from genbound.bounds.base import GAPS, against_gap, unknown_of_all


class Row(dict):
    """Entries by name, and as attributes: ``row["value"]`` is ``row.value``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no entry {name!r}: there are {', '.join(self)}") from None


def bound_row(name: str, row: Mapping[str, Any], losses: Mapping[str, Any]) -> Row:
    """A bound's row, with what runs that were stored before did not say of it.

    Args:
        name: of the bound.
        row: its entries.
        losses: what was measured of the loss and the error; empty if nothing was.
    """
    found = Row(row, forms={form: Row(entry) for form, entry in row["forms"].items()})
    known = BOUNDS.get(name)
    if known is not None and known.kind == "norm":
        found |= {"kind": known.kind, "bounds": known.bounds, "vacuous": None}
    if "gap_ratio" not in found:
        found |= against_gap(found["value"], losses.get(GAPS.get(found["bounds"], "")))
    found |= unknown_of_all(found)
    return found
