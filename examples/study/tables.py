"""The tables of the study, each from the stored cells; ``None`` where nothing was run."""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
from cells import SIX
from tabulate import tabulate

import genbound
from genbound.results.correlation import Correlations

Row = dict[str, Any]
METHODS = ("plain", "consistent", "constraint", "both")
RESAMPLES = 1999
LOGARITHMIC = (*SIX, "bartlett2017")  # ranked by their logarithms: some overflow


def select(rows: list[Row], task: str, group: str) -> list[Row]:
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


def noise(rows: list[Row], task: str, group: str) -> str | None:
    """Accuracy, fit of the noisy labels and Hessian measure under label noise, by method."""
    found, lines = defaultdict(list), []
    for row in select(rows, task, group):
        found[row["method"]].append(row)
    plain = {row["seed"]: row["accuracy"]["test"] for row in found["plain"]}
    for method in METHODS:
        own = found.get(method)
        if not own:
            continue
        gains = [row["accuracy"]["test"] - plain[row["seed"]] for row in own if row["seed"] in plain]
        lines.append(
            [
                method,
                mean_and_sem([row["accuracy"]["test"] for row in own]),
                "" if method == "plain" or not gains else mean_and_sem(gains),
                mean_and_sem([row["accuracy"]["train_observed"] for row in own]),
                mean_and_sem([row["accuracy"]["train_given"] for row in own]),
                measure(own, "bounds"),
                measure(own, "held_out"),
            ]
        )
    if not lines:
        return None
    wrong = np.mean([row["noise_rate"] for row in found["plain"] or own])
    headers = [
        "method",
        "test accuracy %",
        "gain over plain",
        "fit of noisy labels %",
        "fit of true labels %",
        "Hessian measure, training",
        "Hessian measure, held out",
    ]
    return f"{markdown(lines, headers)}\n\nWrong labels: {100 * wrong:.1f} % of the training samples."


def measure(rows: list[Row], where: str) -> str:
    values = [row[where]["hessian_distance"] for row in rows if row.get(where)]
    return mean_and_sem(values, percent=False) if values else "/"


def gap(row: Row, kind: str) -> float:
    losses = row["losses"]
    return losses[f"test_{kind}"] - losses[f"train_{kind}"]


def values_of(row: Row) -> dict[str, float]:
    """Everything that a checkpoint is ranked by."""
    found = dict(row.get("measures") or row.get("bounds") or {})
    for name in LOGARITHMIC:
        bound = row["results"]["bounds"].get(name) if row["results"] else None
        if found.pop(name, None) is not None or bound:
            found[f"log10 {name}"] = bound["log10"]
    if row.get("held_out"):
        found["hessian_distance (held out)"] = row["held_out"]["hessian_distance"]
    total = (row["results"] or {}).get("quantities", {}).get("hessian_trace", {}).get("total")
    if total:
        found["hessian_trace"] = total["value"]
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def correlated(rows: list[Row], task: str, kind: str) -> Correlations | None:
    """Each measure against the gap, with bootstrap intervals and permutation p-values."""
    cells = [row for row in select(rows, task, "clean") if row.get("losses")]
    if len(cells) < 5:
        return None
    points = [{"data": task, "gap": gap(row, kind), "hyperparameters": {}, **values_of(row)} for row in cells]
    return genbound.correlate(pd.DataFrame(points), kind, num_resamples=RESAMPLES)


def correlations(rows: list[Row], task: str, kind: str) -> str | None:
    found = correlated(rows, task, kind)
    return None if found is None else found.to_markdown().partition("\n\n")[2]


def clean(rows: list[Row], task: str) -> str | None:
    """What every method does on clean labels."""
    found = defaultdict(list)
    for row in select(rows, task, "clean"):
        found[row["method"]].append(row)
    lines = [
        [
            method.replace("_", " "),
            str(len(own)),
            mean_and_sem([row["accuracy"]["test"] for row in own]).rpartition(" ")[0],
            " … ".join(f"{f(gap(row, 'loss') for row in own):.2f}" for f in (min, max)),
            " … ".join(f"{f(row['bounds']['hessian_distance'] for row in own):.2g}" for f in (min, max)),
        ]
        for method, own in found.items()
    ]
    headers = ["method", "checkpoints", "test accuracy %", "gap in the loss", "Hessian measure"]
    return markdown(lines, headers) if lines else None


def stability(rows: list[Row], task: str) -> str | None:
    for row in select(rows, task, "stability"):
        found = row["results"]["quantities"]["noise_stability"]
        lines = [
            [
                f"{s['sigma']:g}", f"{s['value']:.3g} ± {s['sem']:.1g}", f"{s['hessian_approximation']:.3g}",
                "yes" if s["quadratic_regime"] else "no",
            ]
            for s in found["sigmas"]
        ]  # fmt: skip
        table = markdown(lines, ["σ", "noise stability ± sem", "½σ² Tr H", "quadratic"])
        return f"{table}\n\nRelative RSS: {100 * found['relative_rss']:.2f} %."
    return None


def bounds(rows: list[Row]) -> str | None:
    cells = {row["task"]: row for row in rows if row["group"] == "bounds"}
    names = list(dict.fromkeys(name for row in cells.values() for name in row["results"]["bounds"]))
    lines = []
    for name in names:
        line = [f"`{name}`"]
        for row in cells.values():
            bound = row["results"]["bounds"].get(name) or {}
            size, value = bound.get("log10"), bound.get("value")
            line.append(
                "/" if size is None else f"{value:.3g}" if value is not None and abs(size) < 6 else f"1e{size:.1f}"
            )
        lines.append(line)
    return markdown(lines, ["bound", *cells]) if lines else None


def reduction(rows: list[Row], task: str) -> str | None:
    """How many times smaller than plain fine-tuning's the Hessian measure is, on the same labels, by method."""
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows if row["task"] == task and row.get("bounds")):
        cells = select(rows, task, group)
        for method in dict.fromkeys(row["method"] for row in cells if row["method"] != "plain"):
            own = [row for row in cells if row["method"] == method]
            same = {row["seed"]: row for row in cells if row["method"] == "plain" and not row["strength"]}
            line = [group, method.replace("_", " "), "0"]
            for where in ("bounds", "held_out"):
                pairs = [(same[row["seed"]], row) for row in own if row["seed"] in same and row.get(where)]
                values = [
                    (p[where]["hessian_distance"], r[where]["hessian_distance"]) for p, r in pairs if p.get(where)
                ]
                ratios = [math.log(p / r) for p, r in values if p > 0 and r > 0]  # 0: predicts one class for all
                line.append(f"{math.exp(np.mean(ratios)):.2g}" if ratios else "/")
                line[2] = str(max(int(line[2]), len(ratios)))
            if line[3] != "/":
                lines.append(line)
    headers = ["labels", "method", "checkpoints", "times smaller, training samples", "times smaller, held-out samples"]
    return markdown(lines, headers) if lines else None
