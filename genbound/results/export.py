"""Results as one long table, to pandas, Parquet, CSV or JSON lines: one row a number, with its error and its run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from genbound.errors import GenboundError
from genbound.files import write_atomically
from genbound.results.comparison import as_results
from genbound.results.observations import observe
from genbound.results.results import Results

WRITERS = {
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
}


def tidy(runs: Iterable[Results | str | Path]) -> pd.DataFrame:
    """One row a number.

    Returns:
        Columns ``run``, ``kind`` (quantity or bound), ``measure``, ``where`` (layer, sigma or entry), ``value``,
        ``sem``, ``data_sem`` (missing where unknown), ``lower``, ``upper``, ``log10`` (of bounds, also where the value
        overflows a float) and ``note``.
    """
    rows: list[dict[str, Any]] = []
    for run, results in as_results(runs).items():
        for o in observe(results).values():
            if not o.is_bound:
                rows.append(
                    {"run": run, "kind": "quantity", "measure": o.measure, "where": o.where, "value": o.value,
                     "sem": o.sem,
                     "data_sem": o.data_sem, "lower": o.lower, "upper": o.upper, "log10": None, "note": ""}
                )  # fmt: skip
        for bound, row in results.bounds.items():
            known = {key: row[key] for key in ("value", "lower", "upper", "log10", "note")}
            rows.append(
                {"run": run, "kind": "bound", "measure": bound, "where": "", "sem": None, "data_sem": None, **known}
            )
            rows += [
                {
                    "run": run,
                    "kind": "bound",
                    "measure": bound,
                    "where": form,
                    "log10": entry.get("log10"),
                    "note": entry.get("note", ""),
                }
                for form, entry in row["forms"].items()
                if form != "main_term"
            ]
    columns = ["run", "kind", "measure", "where", "value", "sem", "data_sem", "lower", "upper", "log10", "note"]
    texts = {"run", "kind", "measure", "where", "note"}
    return pd.DataFrame(rows, columns=columns).astype({c: str if c in texts else float for c in columns})


def export(runs: Iterable[Results | str | Path], out: str | Path) -> Path:
    """Write :func:`tidy` to a file; its suffix says in which format: .parquet, .csv or .jsonl."""
    path = Path(out)
    if path.suffix not in WRITERS:
        raise GenboundError(f"{path} has no suffix of a known format: use {', '.join(WRITERS)}")
    table = tidy(runs)
    write_atomically(path, lambda temporary: WRITERS[path.suffix](table, temporary))
    return path
