"""What comparing, correlating and reporting a thousand stored runs takes: ``python -m benchmarks.many_runs RUN``.

RUN is a directory that ``genbound evaluate --out`` wrote with ``--test-data``. Its numbers are varied to make the
others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

COMMANDS = {
    "compare": ["compare"],
    "correlate": ["correlate"],
    "correlate --out": ["correlate", "--out", "{out}/plots"],
    "report": ["report", "--out", "{out}/report.html"],
}
GRID = {"learning_rate": (1e-5, 2e-5, 5e-5, 1e-4), "weight_decay": (0.0, 0.01, 0.1), "epochs": (1, 2, 3, 5)}
SPREAD = 0.3  # standard deviation of the logarithms of numbers


def vary(content: dict[str, Any], index: int) -> dict[str, Any]:
    """Another run: every measured number times a factor of its own, and every bound by the size of the gap.

    Args:
        content: of a results.json.
        index: of the run; it says which hyper-parameters and factors it has.
    """
    stream = np.random.default_rng(index)
    found = json.loads(json.dumps(content))
    settings, rest = {}, index
    for name, values in GRID.items():
        rest, place = divmod(rest, len(values))
        settings[name] = values[place]
    found["config"] |= {"hyperparameters": settings | {"repetition": rest}, "seed": index}
    size = float(np.exp(SPREAD * stream.normal()))
    for summary in found["quantities"].values():
        for row in summary.get("layers", {}).values():
            _scale(row, float(np.exp(SPREAD * stream.normal())))
    losses = found["quantities"]["losses"]
    losses["generalization_gap"] = size * 0.1
    losses["test_loss"] = losses["train_loss"] + losses["generalization_gap"]
    for row in found["bounds"].values():
        _scale_bound(row, size * float(np.exp(SPREAD * stream.normal())))
    return found


def _scale(row: dict[str, Any], factor: float) -> None:
    for key in ("value", "lower", "upper", "sem"):
        if isinstance(row.get(key), float):
            row[key] *= factor


def _scale_bound(row: dict[str, Any], factor: float) -> None:
    _scale(row, factor)
    if row["log10"] is not None:
        row["log10"] += math.log10(factor)
    if row.get("gap_ratio") is not None:
        row["gap_ratio"] *= factor


def make_runs(run: Path, folder: Path, number: int) -> list[Path]:
    """Stored runs, varied from one, in directories of their own."""
    content = json.loads((run / "results.json").read_text(encoding="utf-8"))
    samples, paths = run / "samples.parquet", [folder / f"run{index}" for index in range(number)]
    for index, path in enumerate(paths):
        path.mkdir(parents=True)
        (path / "results.json").write_text(json.dumps(vary(content, index)), encoding="utf-8")
        if samples.exists():
            (path / "samples.parquet").hardlink_to(samples)
    return paths


def timed(command: list[str], runs: list[Path]) -> tuple[float, float]:
    """Processor seconds and peak memory in MiB of a command of genbound in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "genbound", command[0], *map(str, runs), *command[1:]], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed with status {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--number", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        runs = make_runs(given.run, Path(out, "runs"), given.number)
        for title, command in COMMANDS.items():
            seconds, peak = timed([part.format(out=out) for part in command], runs)
            print(f"{title}: {seconds:.1f} s, {peak:.0f} MiB", flush=True)
        print(f"the page: {Path(out, 'report.html').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
