"""Tables of the first, small study, from its stored cells; ``None`` where nothing was run.

Its 100 networks were fine-tuned on 300 or 500 samples. C is the largest training loss of each, and the held-out samples
that curvature was measured on are among the test samples that define the gap: what the protocol of now forbids.
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
from stored import Cell
from tabulate import tabulate
from tracking import RESAMPLES, coefficient

import genbound
from genbound.results.correlation import Correlations

METHODS = ("plain", "consistent", "constraint", "both")
TASKS = {"cifar10": "EfficientNet-Lite0, CIFAR-10", "sst2": "MiniLM, SST-2"}


def select(rows: list[Cell], task: str, group: str) -> list[Cell]:
    """The cells of a question."""
    return [row for row in rows if (row["task"], row["group"]) == (task, group)]


def mean_and_sem(values: list[float], percent: bool = True) -> str:
    """``71.3 ± 0.8 (3)``: mean, standard error over the seeds, number of seeds."""
    scale = 100 if percent else 1
    mean = scale * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3g} (1)"
    sem = scale * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if percent:
        return f"{mean:.1f} ± {sem:.1f} ({len(values)})"
    return f"{mean:.3g} ± {f'{sem:.1g}' if sem < 10 else f'{sem:.0f}'} ({len(values)})"


def markdown(rows: list[list[Any]], headers: list[str]) -> str:
    """A table."""
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def points(rows: list[Cell], task: str, kind: str) -> pd.DataFrame:
    """One row a network on clean labels, as :func:`genbound.correlate` takes it, with what costs nothing."""
    own = [row for row in select(rows, task, "clean") if row.get("losses")]
    frame = pd.DataFrame(
        [
            {
                "run": str(i), "data": task, "gap": row["losses"][f"test_{kind}"] - row["losses"][f"train_{kind}"],
                "hyperparameters": {}, "cluster": row["method"], **row["measures"],
            }
            for i, row in enumerate(own)
        ]
    ).set_index("run")  # fmt: skip
    trivial = {
        "training loss": lambda row: row["losses"]["train_loss"],
        "training error": lambda row: row["losses"]["train_error"],
        "distance": lambda row: row["distance"],
    }
    frame.attrs["rivals"] = {name: {str(i): of(row) for i, row in enumerate(own)} for name, of in trivial.items()}
    return frame


def correlated(frame: pd.DataFrame, kind: str = "loss") -> Correlations:
    """Every measure and what costs nothing against the gap."""
    return genbound.correlate(frame, kind, num_resamples=RESAMPLES)


def tracking(rows: list[Cell], task: str) -> str:
    """Every measure and what costs nothing against the gap in the loss and in the error, the largest |τ| first."""
    found = {kind: correlated(points(rows, task, kind), kind).table for kind in ("loss", "error")}
    errors = {row["measure"]: row for row in found["error"].to_dict("records")}
    trivial = ("training loss", "training error", "distance")
    lines = []
    for row in sorted(found["loss"].to_dict("records"), key=lambda row: -abs(row["kendall"])):
        name = row["measure"]
        lines.append([
            f"*{name}*" if name in trivial else name, str(row["num_runs"]), coefficient(row),
            coefficient(row, "kendall given training loss"), coefficient(errors.get(name, {})),
            coefficient(errors.get(name, {}), "kendall given training loss"),
        ])  # fmt: skip
    head = ["measure", "runs", "τ, gap in the loss", "given the training loss", "τ, gap in the error",
            "given the training loss"]  # fmt: skip
    return markdown(lines, head)


def noise(rows: list[Cell], task: str, group: str) -> str | None:
    """Accuracy, fit of the noisy labels and Hessian measure under label noise, by method."""
    found, lines = defaultdict(list), []
    for row in select(rows, task, group):
        found[row["method"]].append(row)
    for method in METHODS:
        own = found.get(method)
        if not own:
            continue
        gained = gains(rows, task, group, method)
        lines.append([
            method, mean_and_sem([row["accuracy"]["test"] for row in own]),
            "" if method == "plain" else mean_and_sem(gained),
            mean_and_sem([row["accuracy"]["train_observed"] for row in own]),
            mean_and_sem([row["accuracy"]["train_given"] for row in own]),
        ])  # fmt: skip
    if not lines:
        return None
    wrong = np.mean([row["noise_rate"] for row in found["plain"]])
    head = ["method", "test accuracy %", "gain over plain", "fit of noisy labels %", "fit of true labels %"]
    return f"{markdown(lines, head)}\n\nWrong labels: {100 * wrong:.1f} % of the training samples."


def gains(rows: list[Cell], task: str, group: str, method: str) -> list[float]:
    """Test accuracy less that of plain fine-tuning of the same seed."""
    own = {row["seed"]: row["accuracy"]["test"] for row in select(rows, task, group) if row["method"] == method}
    plain = {row["seed"]: row["accuracy"]["test"] for row in select(rows, task, group) if row["method"] == "plain"}
    return [own[seed] - plain[seed] for seed in sorted(own) if seed in plain]


def reductions(rows: list[Cell], task: str, group: str, method: str) -> list[float]:
    """Logarithms of how many times smaller than plain fine-tuning's the held-out Hessian measure is, seed by seed."""
    found = {
        name: {
            row["seed"]: row["held_out"]["hessian_distance"]
            for row in select(rows, task, group)
            if row["method"] == name and row.get("held_out")
        }
        for name in ("plain", method)
    }
    return [math.log(found["plain"][seed] / value) for seed, value in sorted(found[method].items())]


def stability(rows: list[Cell], task: str) -> str | None:
    """Noise stability beside its approximation over the grid of sigma."""
    for found in grids(rows, task):
        lines = [
            [f"{s['sigma']:g}", f"{s['value']:.3g} ± {s['sem']:.1g}", f"{s['hessian_approximation']:.3g}"]
            for s in found["sigmas"]
        ]
        table = markdown(lines, ["σ", "noise stability ± sem", "½σ² Tr H"])
        return f"{table}\n\nRelative RSS: {100 * found['relative_rss']:.2f} %."
    return None


def grids(rows: list[Cell], task: str) -> list[dict[str, Any]]:
    """What was measured of noise stability."""
    return [row["results"]["quantities"]["noise_stability"] for row in select(rows, task, "stability")]


def bounds(rows: list[Cell]) -> str | None:
    """The talk's table: one checkpoint a data set."""
    cells = {row["task"]: row for row in rows if row["group"] == "bounds"}
    names = list(dict.fromkeys(name for row in cells.values() for name in row["results"]["bounds"]))
    lines = [
        [f"`{name}`", *(size(row["results"]["bounds"].get(name) or {}) for row in cells.values())] for name in names
    ]
    return markdown(lines, ["bound", *(TASKS[task] for task in cells)]) if lines else None


def size(bound: dict[str, Any]) -> str:
    """A bound's value, by its exponent where that is large."""
    log10, value = bound.get("log10"), bound.get("value")
    return "/" if log10 is None else f"{value:.3g}" if value is not None and abs(log10) < 6 else f"1e{log10:.1f}"
