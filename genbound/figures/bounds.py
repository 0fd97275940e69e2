"""Bounds of one run or several on a log axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from genbound.figures.broken_axis import PowersOfTen
from genbound.figures.style import COLOURS, GREY, MARKERS, VERMILION, legend_below, new_axes, words
from genbound.results.gap import UNITS, measured_gap, vacuous_from
from genbound.results.results import Results

LABELS = {"loss": "loss, nats", "error": "0–1 error"}
GAP, VACUOUS = "measured gap", "vacuous from here on"
LINES = {GAP: "--", VACUOUS: ":"}


def plot_bounds(runs: Mapping[str, Results], unit: str = "loss", ax: Any = None) -> Any:
    """Bounds of one unit on a log axis, each run a marker; lines at the measured gap and where bounds become vacuous.

    A bound is vacuous where the training loss (or error) and the bound together reach what the best constant prediction
    does, so the line stands at the constant's loss minus the training loss; bounds on a margin loss have a line of
    their own, further left. Where bounds lie tens of decades apart the axis has two parts, the finer one around the gap
    (:mod:`genbound.figures.broken_axis`).

    Args:
        runs: name -> results.
        unit: ``loss`` (in nats) or ``error`` (a fraction).
        ax: where to draw.
    """
    names, rows = bounds_of(runs, unit)
    ax = new_axes(6.4, 1.9 + 0.27 * len(names)) if ax is None else ax
    shift = np.linspace(-0.18, 0.18, len(runs)) if len(runs) > 1 else [0.0]
    measured = set()
    for index, (name, run) in enumerate(runs.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        at = [(place, rows[name][b]["log10"]) for place, b in enumerate(names) if b in rows[name]]
        ax.plot(
            [x for _, x in at], [p + shift[index] for p, _ in at], marker, color=colour, ms=5, ls="", label=words(name)
        )
        low = [(p, x) for p, x in at if rows[name][names[p]].get("below_gap")]
        ax.plot([x for _, x in low], [p + shift[index] for p, _ in low], "x", color=VERMILION, ms=9, ls="")
        for what, value in yardsticks(run, unit).items():
            measured.add(what)
            ax.axvline(math.log10(value), ls=LINES[what], color=colour if len(runs) > 1 else GREY, lw=1.2)
    if any(row.get("below_gap") for found in rows.values() for row in found.values()):
        ax.plot([], [], "x", color=VERMILION, ms=9, ls="", label="below the gap")
    for what in [what for what in LINES if what in measured]:
        ax.plot([], [], LINES[what], color=GREY, lw=1.2, label=what)
    axis_of(runs, unit).draw(ax)
    _label(ax, names, unit)
    return ax


def bounds_of(runs: Mapping[str, Results], unit: str) -> tuple[list[str], dict[str, dict[str, Mapping[str, Any]]]]:
    """``(names, run -> bound -> row)`` of the bounds of one unit that have a value; the smallest come first.

    Certificates are left out: they bound the whole error, and what is drawn is held against the gap.
    """
    rows = {
        name: {
            b: r
            for b, r in run.bounds.items()
            if r["bounds"] == unit and r["log10"] is not None and r["kind"] != "certificate"
        }
        for name, run in runs.items()
    }
    largest = {b: max(row[b]["log10"] for row in rows.values() if b in row) for row in rows.values() for b in row}
    return sorted(largest, key=largest.get), rows


def axis_of(runs: Mapping[str, Results], unit: str) -> PowersOfTen:
    """The axis that shows the bounds of one unit, of which there is one at least, and the yardsticks well."""
    _, rows = bounds_of(runs, unit)
    values = [row["log10"] for found in rows.values() for row in found.values()]
    return PowersOfTen.showing(
        values, [math.log10(value) for run in runs.values() for value in yardsticks(run, unit).values()]
    )


def yardsticks(run: Results, unit: str) -> dict[str, float]:
    """What bounds are held against, where it was measured and a log axis has a place for it."""
    found = {GAP: measured_gap(run, unit), VACUOUS: vacuous_from(run, UNITS[unit])}
    return {what: value for what, value in found.items() if value is not None and value > 0}


def _label(ax: Any, names: list[str], unit: str) -> None:
    ax.set_yticks(range(len(names)), [words(name) for name in names], fontsize="small")
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", lw=0.4, color="#DDDDDD")
    ax.set_axisbelow(True)
    ax.set_xlabel(f"bound on the generalization gap ({LABELS.get(unit, unit)})")
    legend_below(ax)
