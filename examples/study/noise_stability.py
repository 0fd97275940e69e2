"""Noise stability beside its Hessian approximation, network by network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from measure import INVERSE_ROOT, SHAPES, relative_rss
from pilot import markdown
from scipy import stats
from stored import Cell
from tracking import clean

LEVEL = 0.95
EXACT = ("cifar10", "cifar5")  # piecewise linear: their traces are no estimates


def tested(cells: Sequence[Cell], task: str) -> list[Cell]:
    """The networks that noise was put on."""
    return [cell for cell in clean(cells, task) if "stability" in cell]


def sigmas_of(cell: Cell, shape: str) -> list[dict[str, Any]]:
    """What was measured with a shape of the covariances, the smallest σ first."""
    return [row for row in cell["stability"]["rows"] if row["shape"] == shape]


def ratio(row: dict[str, Any], pairs: int, level: float = LEVEL) -> tuple[float, float, float]:
    """Rise over its approximation: value, and the ends of its interval, from the draws and the probes of the traces.

    By Student's law for the pairs of draws, to first order in the error of the approximation. Nothing is known where
    that is not told from 0. Older cells have no such error.
    """
    error = row.get("approximation_sem", 0.0)
    value, reach = row["rise"] / row["approximation"], float(stats.t.ppf((1 + level) / 2, pairs - 1))
    if reach * error >= abs(row["approximation"]):
        return value, -math.inf, math.inf
    half = reach * math.hypot(row["sem"], value * error) / abs(row["approximation"])
    return value, value - half, value + half


def left_out(cell: Cell, shape: str) -> int:
    """Layers without noise: by the inverse root of the trace, those whose trace, or its estimate, is not positive.

    Older cells left these out in every shape.
    """
    if shape != INVERSE_ROOT and "approximation_sem" in cell["stability"]["rows"][0]:
        return 0
    return sum(value <= 0 for value in cell["measures"]["training"]["traces"].values())


def lacking(cell: Cell, shape: str) -> str:
    """Why a network decides nothing; empty where it may."""
    if missing := left_out(cell, shape):
        return f"{missing} layers without noise"
    if cell["task"] not in EXACT and "approximation_sem" not in cell["stability"]["rows"][0]:
        return "error of the traces not stored"
    return ""


def layered(cells: Sequence[Cell], task: str) -> str | None:
    """Noise stability and its approximation with covariances of each layer's own: a line a shape and network."""
    lines = []
    for shape in SHAPES:
        for cell in tested(cells, task):
            rows, number = sigmas_of(cell, shape), len(cell["measures"]["training"]["traces"])
            approximation = f"{rows[-1]['approximation']:.2g}"
            if rows[-1].get("approximation_sem", 0.0) > 0:
                approximation += f" ± {rows[-1]['approximation_sem']:.1g}"
            lines.append([
                shape,
                f"{cell['lr']:g}, {'one loss' if cell['stopping'] == 'loss' else 'fixed epochs'}, {cell['seed']}",
                f"{number - left_out(cell, shape)} of {number}", approximation,
                *(interval(ratio(row, cell["stability"]["pairs"])) for row in (rows[0], rows[-1])),
                f"{100 * relative_rss(rows):.1f}",
            ])  # fmt: skip
    head = ["σ_i", "network: rate, end, seed", "layers with noise", "½Σ⟨Σ_i, H_i⟩ at the largest σ",
            "rise over it, smallest σ", "largest σ", "relative RSS %"]  # fmt: skip
    return markdown(lines, head) if lines else None


def interval(found: tuple[float, float, float]) -> str:
    """``1.01 [0.91, 1.11]``."""
    value, low, high = found
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if math.isfinite(low) else f"{value:.2f}, of what may be 0"
