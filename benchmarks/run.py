"""``python -m benchmarks.run [ROW ...]``: measure and print the table.

The rows are added to benchmarks/results.json and docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.rows import ROWS

RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--table", action="store_true", help="write the stored rows to the page, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}: use one of {', '.join(ROWS)}")
    stored = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in [] if arguments.table else arguments.rows or ROWS:
        print(f"… {name}", flush=True)
        for row in ROWS[name]():
            machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
                       "machine": platform.machine()}  # fmt: skip
            stored[row["what"]] = {**row, **machine}
            print(json.dumps(row), flush=True)
        arguments.out.write_text(json.dumps(stored, indent=1) + "\n")  # after every row: nothing measured is lost
    shown = table(stored)
    print(shown)
    if arguments.out == RESULTS:
        before, _, rest = PAGE.read_text().partition("<!-- rows -->")
        PAGE.write_text(f"{before}<!-- rows -->\n{shown}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")


def table(stored: dict) -> str:
    cells = [
        [r["what"], r["obtained"], r["target"], "yes" if r["reached"] else "no", r["note"]] for r in stored.values()
    ]
    return tabulate(cells, ["what", "obtained", "target", "reached", "note"], tablefmt="github")


if __name__ == "__main__":
    main()
