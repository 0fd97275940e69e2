"""``python -m benchmarks.run [ROW ...]``: measure, print the table, and add the rows to benchmarks/results.json."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}: use one of {', '.join(ROWS)}")
    stored = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.rows or ROWS:
        print(f"… {name}", flush=True)
        for row in ROWS[name]():
            machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count(),
                       "machine": platform.machine()}  # fmt: skip
            stored[row["what"]] = {**row, **machine}
            print(json.dumps(row), flush=True)
        arguments.out.write_text(json.dumps(stored, indent=1) + "\n")  # after every row: nothing measured is lost
    table = [
        [r["what"], r["obtained"], r["target"], "yes" if r["reached"] else "no", r["note"]] for r in stored.values()
    ]
    print(tabulate(table, ["what", "obtained", "target", "reached", "note"], tablefmt="github"))


if __name__ == "__main__":
    main()
