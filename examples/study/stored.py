"""The stored cells: read, and refused where they would not be of one study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from measure import MEASURES, UNROLLED
from plan import SWEEPS
from tasks import SETS, assert_disjoint

Cell = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
PILOT = "pilot"


def cells(results: Path = RESULTS) -> list[Cell]:
    """Every finished cell of the protocol, in the order of their names.

    Raises:
        SystemExit: cells of one task were not measured alike, or their sets are not those whose digests are stored.
    """
    found = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(results.glob("*/*.json"))
        if file.parent.name != PILOT
    ]
    for cell in found:
        if cell["task"] not in MEASURES:  # older cells of transformers have it, of texts of several lengths
            for row in cell["measures"].values():
                row["bounds"].pop(UNROLLED, None)
    for task in dict.fromkeys(cell["task"] for cell in found):
        own = [cell for cell in found if cell["task"] == task]
        digests = json.loads((results / task / "samples" / "digests.json").read_text(encoding="utf-8"))
        assert_disjoint(digests)
        if {name: len(digests[name]) for name in ("measurement", "test")} != {
            name: own[0][name]["num"] for name in ("measurement", "test")
        }:
            raise SystemExit(f"{task}: the stored digests are of other sets than the cells")
        _alike(task, own)
    return found


def conditions(cell: Cell) -> dict[str, Any]:
    """What all cells of a task have in common, and all rows of a cell."""
    rows = cell["measures"].values()
    return {
        "protocol": cell["protocol"],
        "sets": tuple(cell["digests"][name] for name in SETS),
        "C": {row["C"] for row in rows},
        "samples measured": cell["measures"]["measurement"]["num_samples"],
    }


def _alike(task: str, own: list[Cell]) -> None:
    first = conditions(own[0])
    for cell in own:
        differing = [key for key, value in conditions(cell).items() if value != first[key]]
        sizes = {row["n"] for row in cell["measures"].values()}
        if sizes != {cell["n"]}:
            differing.append("n of a row")
        if differing:
            raise SystemExit(f"{task}: {cell['name']} differs from {own[0]['name']} in {', '.join(differing)}")
    for group in ("clean", *SWEEPS):  # noisy runs that hold samples out have fewer to train on
        sizes = {(c["n"], c["measures"]["training"]["num_samples"]) for c in own if c["group"] == group}
        if len(sizes) > 1:
            raise SystemExit(
                f"{task}: n, or the training samples measured, differ among {group} cells: {sorted(sizes)}"
            )


def pilot(results: Path = RESULTS) -> list[Cell]:
    """The cells of the first, small study, with genbound's results where they are stored."""
    found = []
    for file in sorted((results / PILOT).glob("*/*/cell.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        whole = file.with_name("results.json")
        row["results"] = json.loads(whole.read_text(encoding="utf-8")) if whole.exists() else None
        found.append(row)
    return found
