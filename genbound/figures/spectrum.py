"""Plots of the Hessian's spectrum. They draw on axes and return them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from genbound.estimators.curvature_kinds import CALLED
from genbound.estimators.spectral_density import density
from genbound.figures.style import BLUE, GREY, VERMILION, new_axes, shorten
from genbound.formatting import digits
from genbound.results.results import Results

WIDTH = 1 / 120  # of the spectrum: how wide an eigenvalue is drawn
LOWEST = 1e-7  # densities below this share of the highest are not shown: no eigenvalue is there
MOST = 30  # layers that are drawn


def has_total(results: Results) -> bool:
    """Whether there is a spectrum of all layers together."""
    return results.quantities["hessian_spectrum"]["total"] is not None


def has_layers(results: Results) -> bool:
    """Whether there are spectra of single layers."""
    return bool(results.quantities["hessian_spectrum"]["layers"])


def curve_of(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(eigenvalues [G], density [G], sem [G])`` of a matrix, every eigenvalue drawn a little wide."""
    quadratures = [(np.array(n), np.array(w)) for n, w in zip(row["nodes"], row["weights"], strict=True)]
    low, high = row["smallest"]["value"], row["value"]
    width = WIDTH * ((high - low) or abs(high) or 1.0)
    grid = np.linspace(low - 4 * width, high + 4 * width, 800)
    return grid, *density(quadratures, row["dimension"], grid, width)


def plot_spectrum(results: Results, ax: Any = None) -> Any:
    """Density of the eigenvalues of all layers together on a log axis, with its error and the two ends.

    Args:
        results: a run that has ``hessian_spectrum`` with its total.
        ax: where to draw.
    """
    ax = new_axes(5.8, 3.7) if ax is None else ax
    summary = results.quantities["hessian_spectrum"]
    row = summary["total"]
    grid, mean, sem = curve_of(row)
    floor = LOWEST * mean.max()
    ax.fill_between(grid, np.maximum(mean - 1.96 * sem, floor), np.maximum(mean + 1.96 * sem, floor), color=BLUE,
                    alpha=0.25, lw=0, label=f"± 1.96 sem over {len(row['nodes'])} start vectors")  # fmt: skip
    ax.plot(grid, np.maximum(mean, floor), color=BLUE, lw=1.2, label="density of the eigenvalues")
    for end, name in ((row["smallest"], "smallest"), (row, "largest")):
        ax.axvspan(end["lower"], end["upper"], color=VERMILION, alpha=0.3, lw=0)
        ax.plot([end["value"]], [floor], "|", color=VERMILION, ms=14, mew=1.6, label=f"{name}: {digits(end['value'])}")
    ax.set_yscale("log")
    ax.set_ylim(floor, 3 * mean.max())
    ax.set_xlabel(f"eigenvalue of the {CALLED[summary['curvature']]} matrix in {row['dimension']:,} weights")
    ax.set_ylabel("share of the eigenvalues per unit")
    ax.legend(edgecolor="none", framealpha=0.9, fontsize="small", loc="upper right", markerscale=0.6)
    return ax


def largest_of_layers(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Layer -> its row, the largest eigenvalue first."""
    return dict(sorted(summary["layers"].items(), key=lambda item: item[1]["value"], reverse=True))


def plot_largest_eigenvalues(results: Results, ax: Any = None, most: int = MOST) -> Any:
    """The largest eigenvalue of each layer's own block, largest first, with its sides.

    Args:
        results: a run that has ``hessian_spectrum`` with its layers.
        ax: where to draw.
        most: layers to show; how many are left out is said below.
    """
    summary = results.quantities["hessian_spectrum"]
    rows = largest_of_layers(summary)
    names = list(rows)[:most]
    ax = new_axes(6.5, 1.4 + 0.22 * len(names)) if ax is None else ax
    for place, name in enumerate(names):
        row = rows[name]
        ax.barh(place, row["value"], color=BLUE, height=0.7)
        ax.plot([row["lower"], row["upper"]], [place, place], "-", color="black", lw=1.0)
        ax.annotate(digits(row["value"]), (max(row["value"], row["upper"], 0.0), place), xytext=(3, 0),
                    textcoords="offset points", va="center", fontsize="x-small", color=GREY)  # fmt: skip
    ax.set_yticks(range(len(names)), [shorten(name) for name in names], fontsize="x-small")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.margins(x=0.12)
    left = len(rows) - len(names)
    ax.set_xlabel(
        f"largest eigenvalue of the layer's {CALLED[summary['curvature']]} block"
        + (f"\n{left} of {len(rows)} layers, with smaller ones, are left out" if left else "")
    )
    return ax
