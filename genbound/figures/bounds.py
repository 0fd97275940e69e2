"""Bounds of one run or several on a log axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np

from genbound.figures.style import COLOURS, GREY, MARKERS, new_axes
from genbound.results.results import Results

UNITS = {"loss": "loss, nats", "error": "0–1 error"}


def plot_bounds(runs: Mapping[str, Results], unit: str = "loss", ax: Any = None) -> Any:
    """Bounds of one unit on a log axis, each run a marker.

    Lines show the measured gap and the value from which a bound is vacuous.

    A bound is vacuous where the training loss (or error) and the bound together reach what the best constant prediction
    does, so the line stands at the constant's loss minus the training loss; bounds on a margin loss have a line of
    their own, further left.
    """
    rows = {
        name: {b: r for b, r in run.bounds.items() if r["bounds"] == unit and r["log10"] is not None}
        for name, run in runs.items()
    }
    largest = {b: max(row[b]["log10"] for row in rows.values() if b in row) for row in rows.values() for b in row}
    names = sorted(largest, key=largest.get)
    ax = new_axes(6.2, 1.5 + 0.3 * len(names)) if ax is None else ax
    empirical, constant, gap = (
        ("train_loss", "constant_loss", "generalization_gap")
        if unit == "loss"
        else ("train_error", "constant_error", "error_gap")
    )
    shift = np.linspace(-0.18, 0.18, len(runs)) if len(runs) > 1 else [0.0]
    for index, (name, run) in enumerate(runs.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        at = [(place, rows[name][b]["log10"]) for place, b in enumerate(names) if b in rows[name]]
        ax.plot([x for _, x in at], [p + shift[index] for p, _ in at], marker, color=colour, ms=5, ls="", label=name)
        losses = run.quantities.get("losses", {})
        values = {"gap": losses.get(gap), "vacuous": None}
        if losses.get(constant) is not None and losses.get(empirical) is not None:
            values["vacuous"] = losses[constant] - losses[empirical]
        for key, style in (("gap", "--"), ("vacuous", ":")):
            if values[key] is not None and values[key] > 0:
                ax.axvline(math.log10(values[key]), ls=style, color=colour if len(runs) > 1 else GREY, lw=1.2)
    ax.plot([], [], "--", color=GREY, lw=1.2, label="measured gap")
    ax.plot([], [], ":", color=GREY, lw=1.2, label="vacuous from here on")
    ax.set_yticks(range(len(names)), names, fontsize="small")
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", lw=0.4, color="#DDDDDD")
    ax.set_axisbelow(True)
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(7, integer=True))
    ax.xaxis.set_major_formatter(lambda x, _: f"$10^{{{x:g}}}$")
    ax.set_xlabel(f"bound on the generalization gap ({UNITS.get(unit, unit)})")
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    return ax
