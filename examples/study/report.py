"""Tables and figures of docs/study.md from the stored cells.

::

    python examples/study/report.py                           # refresh the page and its figures
    python examples/study/report.py --check                   # exit with 1 where the page is not what the cells say
    python examples/study/report.py --results DIR --page new.md --images DIR   # all tables of other cells

In the page everything between ``<!-- NAME -->`` and ``<!-- end -->`` is replaced by the table of that name.
"""

import argparse
import re
import sys
from pathlib import Path

import claims
import noise_stability
import pilot
import stored
import tables
import tracking
from plan import SWEEPS
from stored import Cell
from tasks import TASKS

ROOT = Path(__file__).parent.parent.parent
NOTHING = "*Not run.*"


def blocks(cells: list[Cell], rows: list[Cell]) -> dict[str, str]:
    """Every table by its name in the page."""
    found: dict[str, str | None] = {
        "cells": tables.progress(cells),
        "measuring": tables.measuring(cells),
        "bounds": tables.talks(cells),
        "claims": claims.as_table(claims.all_claims(cells, rows)),
        "tasks": sections(cells),
    }
    for task in pilot.TASKS if rows else ():
        found[f"pilot {task} tracking"] = pilot.tracking(rows, task)
        found[f"pilot {task} stability"] = pilot.stability(rows, task)
        for group in ("symmetric40", "correlated40"):
            found[f"pilot {task} {group}"] = pilot.noise(rows, task, group)
    found["pilot bounds"] = pilot.bounds(rows)
    return {name: text for name, text in found.items() if text}


def sections(cells: list[Cell]) -> str:
    """What there is of every task, and the figures that are drawn of them."""
    found = [section(cells, task) for task in TASKS if any(cell["task"] == task for cell in cells)]
    return "\n\n".join([*found, *drawn(cells)]) or "No cell of the protocol is there yet."


def drawn(cells: list[Cell]) -> list[str]:
    """A line for each figure that :mod:`figures` makes of the protocol's cells."""
    if not any(len(tracking.clean(cells, task)) >= tracking.FEWEST for task in TASKS):
        return []
    lines = [
        "![The gap over the Hessian measure](images/study_gap.png)",
        "Filled: driven to one training loss; open: a fixed number of epochs.",
        "![The Hessian measure over the number of samples](images/study_growth.png)",
    ]
    if any("stability" in cell for cell in cells):
        lines.append("![The rise of the loss over its approximation, layer by layer](images/study_layers.png)")
    if tables.swept(cells):
        lines.append("![Hessian measure and gap over the radius](images/study_radius.png)")
    return lines


def section(cells: list[Cell], task: str) -> str:
    """All that there is of a task: a heading, then each table under a line that says what it is."""
    parts: list[tuple[str, str | None]] = [
        ("**What was trained**, on clean labels:", tables.recipes(cells, task)),
        (
            "**Kendall's τ with the gap in the loss** (last column: in the 0–1 error). Measures on the measurement "
            "samples, or on training samples where it says so; in italics what costs nothing; the largest |τ| first. "
            "Intervals: 95 %, whole clusters drawn.",
            tracking.tracking(cells, task),
        ),
        ("**What so many can show.**", tracking.power_of(cells, task)),
        ("**Where a measure has no value in some networks**:", tracking.on_common(cells, task)),
        (
            "**How the maximum grows** with the number of measurement samples that it is taken over, and Kendall's τ "
            "between the networks' order by so many and by all of them:",
            tables.grown(cells, task),
        ),
        (
            "**Noise stability with covariances of each layer's own**, on as many training samples; 95 % intervals of "
            "the draws and of the traces' probes, one network at a time:",
            noise_stability.layered(cells, task),
        ),
        ("**Sizes** on the measurement samples:", tables.sizes(cells, task)),
        (
            "**Certified error** beside the test error, at 95 % for one network at a time:",
            tables.certified(cells, task),
        ),
        (
            "**Along the radius**, a share of each layer's norm that leaves the head free, for that starts at random; "
            "mean ± standard error over the seeds:",
            tables.radius(cells, task, "radius"),
        ),
        (
            "**Along the distance**, one radius for every layer and the head alike:",
            tables.radius(cells, task, "distance"),
        ),
        *(
            (
                f"**Label noise, {group[:-2]}, {group[-2:]} %** (measurement samples with losses above C are clipped "
                "and have no curvature; a small measure beside many of them says nothing):",
                tables.noise(cells, task, group),
            )
            for group in tables.GROUPS[1 + len(SWEEPS) :]
        ),
    ]
    return "\n\n".join([f"### {TASKS[task].title}", *(f"{said}\n\n{text}" for said, text in parts if text)])


def refreshed(page: str, found: dict[str, str]) -> str:
    """The page with its tables replaced; a place for what was not run says so. Other comments of the page stay."""

    def table(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{found.get(match[1], NOTHING)}\n<!-- end -->"

    return re.sub(r"<!-- ((?!end)[\w ]+) -->\n.*?<!-- end -->", table, page, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=stored.RESULTS, help="folder of the cells")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "study.md", help="page whose tables are refreshed")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="where figures go")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the page is another")
    args = parser.parse_args()
    cells, rows = stored.cells(args.results), stored.pilot(args.results)
    found = blocks(cells, rows)
    every = "\n\n".join(f"## {name}\n\n<!-- {name} -->\n<!-- end -->" for name in found) + "\n"
    old = args.page.read_text(encoding="utf-8") if args.page.exists() else every  # of cells elsewhere: all there is
    new = refreshed(old, found)
    if args.check:
        sys.exit(f"{args.page} is not what the cells say: run examples/study/report.py" if old != new else 0)
    args.page.write_text(new, encoding="utf-8")
    from figures import figures

    print("figures:", *(path.name for path in figures(cells, rows, args.images)))


if __name__ == "__main__":
    main()
