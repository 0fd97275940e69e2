"""Tables and figures of docs/study.md from the stored cells; what was not run is left out and counted.

::

    python examples/study/report.py runs/study                # store the cells in the repository and refresh the page
    python examples/study/report.py                           # refresh the page from what is stored

``examples/study/results`` receives ``cell.json`` of every cell (two kilobytes each), and ``results.json`` where a table
needs it. In the page everything between ``<!-- NAME -->`` and ``<!-- end -->`` is replaced by the table of that name.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import tables
from cells import chosen
from figures import figures

ROOT = Path(__file__).parent.parent.parent


def load(folder: Path) -> list[dict[str, Any]]:
    """Every finished cell, with genbound's results where they are stored."""
    rows = []
    for file in sorted(folder.glob("*/*/cell.json")):
        row = json.loads(file.read_text())
        results = file.with_name("results.json")
        row["results"] = json.loads(results.read_text()) if results.exists() else None
        row["path"] = file.parent
        rows.append(row)
    return rows


def store(rows: list[dict[str, Any]], out: Path) -> None:
    """Keep what the tables need; a table of traces needs no gigabytes of checkpoints."""
    for row in rows:
        target = out / row["task"] / row["path"].name
        target.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in row.items() if name not in ("results", "path")}
        kept["measures"] = tables.values_of(row)
        (target / "cell.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        if row["group"] in ("stability", "bounds"):
            text = (row["path"] / "results.json").read_text(encoding="utf-8")
            place = str(row["path"].parent.parent)  # where the study ran is nobody's business
            (target / "results.json").write_text(text.replace(place, "runs/study"), encoding="utf-8")


def blocks(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Every table by its name in the page."""
    done = {(row["task"], row["path"].name) for row in rows}
    core = chosen("core")
    found = {
        "cells": f"{sum((c.task, c.name) in done for c in core)} of the {len(core)} cells of the core are there, "
        f"{len(rows)} cells in all.",
        "bounds": tables.bounds(rows),
    }
    for task in dict.fromkeys(row["task"] for row in rows):
        for group in sorted({row["group"] for row in rows if row["task"] == task and row["noise_rate"] > 0}):
            found[f"{task} {group}"] = tables.noise(rows, task, group)
        found[f"{task} stability"] = tables.stability(rows, task)
        found[f"{task} loss"] = tables.correlations(rows, task, "loss")
        found[f"{task} error"] = tables.correlations(rows, task, "error")
        found[f"{task} reduction"] = tables.reduction(rows, task)
        found[f"{task} clean"] = tables.clean(rows, task)
    return {name: text for name, text in found.items() if text}


def refresh(page: Path, found: dict[str, str]) -> None:
    """Replace the tables in a page, and say which of its places have none."""

    def table(match: re.Match) -> str:
        name = match[1]
        text = found.get(name, "*Not run yet.*")
        return f"<!-- {name} -->\n{text}\n<!-- end -->"

    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"<!-- ([^>]+?) -->\n.*?<!-- end -->", table, text, flags=re.S), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?", help="folder that run.py wrote")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "examples" / "study" / "results", help="where cells are kept"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "study.md", help="page whose tables are refreshed")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="where figures go")
    args = parser.parse_args()
    if args.study is not None:
        store(load(args.study), args.results)
    rows = load(args.results)
    args.images.mkdir(parents=True, exist_ok=True)
    found = blocks(rows)
    written = figures(rows, args.images)
    if args.page.exists():
        refresh(args.page, found)
    for name, text in found.items():
        print(f"## {name}\n\n{text}\n")
    print("figures:", *(path.name for path in written))


if __name__ == "__main__":
    main()
