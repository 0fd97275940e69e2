"""Tables and figures of docs/study.md from the stored cells; what was not run is left out and counted.

::

    python examples/study/report.py runs/study --out docs/study

``docs/study`` receives the cells themselves (``cell.json``, a few kilobytes each, and ``results.json`` where a table
needs it), ``tables.md`` and the figures.
"""

import argparse
import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from cells import RADIUS, chosen
from matplotlib import pyplot as plt
from tabulate import tabulate

import genbound

METHODS = ("plain", "constraint", "consistent", "both")


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


def select(rows: list[dict], task: str, group: str) -> list[dict]:
    return [row for row in rows if (row["task"], row["group"]) == (task, group)]


def mean_and_sem(values: list[float], percent: bool = True) -> str:
    """``71.3 ± 0.8 (3)``: mean, standard error over the seeds, number of seeds."""
    scale = 100 if percent else 1
    mean = scale * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3g} (1)"
    sem = scale * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{mean:.1f} ± {sem:.1f} ({len(values)})" if percent else f"{mean:.3g} ± {sem:.1g} ({len(values)})"


def markdown(rows: list[list[Any]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def noise_table(rows: list[dict], task: str, group: str) -> str | None:
    """Accuracy, fit of the noisy labels and Hessian distance under label noise, by method."""
    cells = select(rows, task, group)
    if not cells:
        return None
    found, lines = defaultdict(list), []
    for row in cells:
        found[row["method"]].append(row)
    plain = {row["seed"]: row["accuracy"]["test"] for row in found["plain"]}
    for method in METHODS:
        group_rows = found.get(method)
        if not group_rows:
            continue
        gains = [row["accuracy"]["test"] - plain[row["seed"]] for row in group_rows if row["seed"] in plain]
        measure = [row["bounds"]["hessian_distance"] for row in group_rows if row.get("bounds")]
        lines.append(
            [
                method,
                mean_and_sem([row["accuracy"]["test"] for row in group_rows]),
                "" if method == "plain" or not gains else mean_and_sem(gains),
                mean_and_sem([row["accuracy"]["train_observed"] for row in group_rows]),
                mean_and_sem([row["accuracy"]["train_given"] for row in group_rows]),
                mean_and_sem(measure, percent=False) if measure else "/",
            ]
        )
    headers = [
        "method",
        "test accuracy %",
        "gain over plain",
        "fit of noisy labels %",
        "fit of true labels %",
        "hessian_distance",
    ]
    return markdown(lines, headers)


def gap(row: dict, kind: str) -> float:
    losses = row["losses"]
    return losses[f"test_{kind}"] - losses[f"train_{kind}"]


def values_of(row: dict) -> dict[str, float]:
    """Everything that a checkpoint is ranked by."""
    found = dict(row.get("bounds") or {})
    total = (row["results"] or {}).get("quantities", {}).get("hessian_trace", {}).get("total")
    if total:
        found["hessian_trace"] = total["value"]
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def correlations(rows: list[dict], task: str, kind: str) -> str | None:
    """Each measure against the gap, with bootstrap intervals and permutation p-values."""
    cells = [row for row in select(rows, task, "clean") if row.get("losses")]
    if len(cells) < 5:
        return None
    table = pd.DataFrame(
        [
            {
                "data": task, "gap": gap(row, kind), "hyperparameters": {},
                **values_of(row),
            }
            for row in cells
        ]
    )  # fmt: skip
    return genbound.correlate(table, kind, num_resamples=1999).to_markdown()


def scatter(rows: list[dict], task: str, out: Path) -> str | None:
    cells = [row for row in select(rows, task, "clean") if row.get("losses") and row.get("bounds")]
    if len(cells) < 5:
        return None
    figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    methods = sorted({row["method"] for row in cells})
    for index, method in enumerate(methods):
        own = [row for row in cells if row["method"] == method]
        axes.scatter(
            [row["bounds"]["hessian_distance"] for row in own], [gap(row, "loss") for row in own], s=30,
            color=plt.cm.tab20(index % 20), marker="os^Dv<>PX*"[index % 10], label=method.replace("_", " "),
        )  # fmt: skip
    axes.set(xlabel="Hessian distance measure", ylabel="generalization gap (nats)", title=task)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(out / f"{task}_gap.png", dpi=130)
    plt.close(figure)
    return f"{task}_gap.png"


def regime(rows: list[dict], task: str) -> str | None:
    for row in select(rows, task, "stability"):
        stability = row["results"]["quantities"]["noise_stability"]
        lines = [
            [f"{s['sigma']:g}", f"{s['value']:.3g} ± {s['sem']:.1g}", f"{s['hessian_approximation']:.3g}", "yes" if s["quadratic_regime"] else "no"]
            for s in stability["sigmas"]
        ]  # fmt: skip
        table = markdown(lines, ["σ", "noise stability ± sem", "½σ² Tr H", "quadratic"])
        return f"{table}\n\nRelative RSS: {100 * stability['relative_rss']:.2f} %."
    return None


def bounds(rows: list[dict]) -> str | None:
    cells = {row["task"]: row for row in rows if row["group"] == "bounds"}
    if not cells:
        return None
    names = list(dict.fromkeys(name for row in cells.values() for name in row["results"]["bounds"]))
    lines = []
    for name in names:
        line = [f"`{name}`"]
        for row in cells.values():
            bound = row["results"]["bounds"].get(name) or {}
            size = bound.get("log10")
            value = bound.get("value")
            line.append(
                "/" if size is None else f"{value:.3g}" if value is not None and abs(size) < 6 else f"1e{size:.1f}"
            )
        lines.append(line)
    return markdown(lines, ["bound", *cells])


def reduction(rows: list[dict], task: str) -> str | None:
    """The Hessian measure of every method as a share of plain fine-tuning's, on the same labels."""
    lines = []
    for group in sorted(
        {row["group"] for row in rows if row["task"] == task and row.get("bounds")} - {"bounds", "stability"}
    ):
        cells = select(rows, task, group)
        plain = [r["bounds"]["hessian_distance"] for r in cells if r["method"] == "plain" and not r["strength"]]
        if not plain:
            continue
        for method in dict.fromkeys(row["method"] for row in cells if row["method"] != "plain"):
            own = [row["bounds"]["hessian_distance"] for row in cells if row["method"] == method]
            lines.append([group, method, f"{np.mean(plain) / np.mean(own):.2f}", len(own)])
    return markdown(lines, ["labels", "method", "times smaller than plain", "checkpoints"]) if lines else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = load(args.study)
    args.out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        target = args.out / "cells" / row["task"] / row["path"].name
        if target != row["path"]:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(row["path"] / "cell.json", target)
            if row["group"] in ("stability", "bounds"):
                shutil.copy(row["path"] / "results.json", target)
    done = {(row["task"], row["path"].name) for row in rows}
    core = chosen("core")
    parts = [
        f"{sum((c.task, c.name) in done for c in core)} of the {len(core)} cells of the core are there, {len(rows)} cells in all."
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        parts.append(f"## {task}\n\nRadius of the constraint: {RADIUS[task]} of each layer's norm.")
        for group in sorted({row["group"] for row in rows if row["task"] == task and row["noise_rate"] > 0}):
            if table := noise_table(rows, task, group):
                parts += [f"### {group}", table]
        for title, table in (
            ("Noise stability and its Hessian approximation", regime(rows, task)),
            ("Correlation with the gap in the loss", correlations(rows, task, "loss")),
            ("Correlation with the gap in the error", correlations(rows, task, "error")),
            ("Reduction of the Hessian measure", reduction(rows, task)),
        ):
            if table:
                parts += [f"### {title}", table]
        if figure := scatter(rows, task, args.out):
            parts.append(f"![Hessian measure and gap on {task}]({figure})")
    if table := bounds(rows):
        parts += ["## Bounds", table]
    (args.out / "tables.md").write_text("\n\n".join(["# Tables of the study", *parts]) + "\n", encoding="utf-8")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
