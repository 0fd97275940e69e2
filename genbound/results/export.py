"""Results as one long table, to pandas, Parquet, CSV or JSON lines: one row a number, with its error and its run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from genbound.errors import GenboundError
from genbound.files import write_atomically
from genbound.results.cells import write_csv
from genbound.results.observations import observe
from genbound.results.results import Results
from genbound.results.runs import as_results

WRITERS = {
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
    ".csv": lambda table, path: write_csv(table, path, index=False),
    ".jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
}
COLUMNS = ["run", "kind", "measure", "where", "value", "sem", "data_sem", "lower", "upper", "log10", "note"]
TEXTS = {"run", "kind", "measure", "where", "note"}


def tidy(runs: Iterable[Results | str | Path]) -> pd.DataFrame:
    """One row a number.

    Returns:
        Columns ``run``, ``kind`` (quantity or bound), ``measure``, ``where`` (layer, sigma or entry), ``value``,
        ``sem``, ``data_sem`` (missing where unknown), ``lower``, ``upper``, ``log10`` (of bounds, also where the value
        overflows a float) and ``note``.
    """
    rows = [
        {"run": run, **row}
        for run, results in as_results(runs).items()
        for row in (*_quantities(results), *_bounds(results))
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype({c: str if c in TEXTS else float for c in COLUMNS})


def _quantities(results: Results) -> Iterator[dict[str, Any]]:
    for o in observe(results).values():
        if not o.is_bound:
            known = {key: getattr(o, key) for key in ("measure", "where", "value", "sem", "data_sem", "lower", "upper")}
            yield {"kind": "quantity", **known, "log10": None, "note": ""}


def _bounds(results: Results) -> Iterator[dict[str, Any]]:
    """The value of each bound and, where they are not the same, its other forms."""
    for name, row in results.bounds.items():
        known = {key: row[key] for key in ("value", "lower", "upper", "log10", "note")}
        yield {"kind": "bound", "measure": name, "where": "", "sem": None, "data_sem": None, **known}
        for form, entry in row["forms"].items():
            if form != "main_term":
                said = {"log10": entry.get("log10"), "note": entry.get("note", "")}
                yield {"kind": "bound", "measure": name, "where": form, **said}


def export(runs: Iterable[Results | str | Path], out: str | Path) -> Path:
    """Write :func:`tidy` to a file; its suffix says in which format: .parquet, .csv or .jsonl."""
    path = Path(out)
    if path.suffix not in WRITERS:
        raise GenboundError(f"{path} has no suffix of a known format: use {', '.join(WRITERS)}")
    table = tidy(runs)
    write_atomically(path, lambda temporary: WRITERS[path.suffix](table, temporary))
    return path
