"""Plots of the loss beside the fine-tuned weights. They draw on axes and return them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm

from genbound.figures.style import BLUE, GREY, ORANGE, VERMILION, new_axes
from genbound.results.results import Results

START, END = "$W^0$, pretrained", "$W$, fine-tuned"


def path_columns(summary: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The points of ``loss_path`` as columns ``t``, ``value``, ``data_sem``, ``parabola``, NaN where there is none."""
    points, keys = summary["points"], ("t", "value", "data_sem", "parabola")
    return {key: np.array([np.nan if p[key] is None else p[key] for p in points], dtype=float) for key in keys}


def loss_unit(results: Results) -> str:
    """The unit of the loss in brackets, for an axis; empty where it has none."""
    return {"cross_entropy": " (nats)"}.get(results.config.get("loss"), "")


def parabola_at(summary: Mapping[str, Any], t: np.ndarray) -> np.ndarray:
    """The parabola of ``loss_path`` at places ``t``, in the unit of the loss."""
    end = next(p["value"] for p in summary["points"] if p["t"] == 1.0)
    return end + summary["slope"] * (t - 1) + 0.5 * summary["curvature"] * (t - 1) ** 2


def plot_loss_path(results: Results, ax: Any = None) -> Any:
    """The loss along the displacement and beyond, with the parabola of its slope and curvature at the fine-tuned end.

    Args:
        results: a run that has ``loss_path``.
        ax: where to draw.
    """
    ax = new_axes(5.6, 3.7) if ax is None else ax
    summary = results.quantities["loss_path"]
    column = path_columns(summary)
    t, loss, error = column["t"], column["value"], 1.96 * column["data_sem"]
    fine = np.linspace(t.min(), t.max(), 200)
    ax.plot(fine, parabola_at(summary, fine), color=ORANGE, lw=1.8, ls="--",
            label="parabola of slope and curvature at $W$")  # fmt: skip
    if np.nansum(error) > 0:
        ax.fill_between(t, loss - error, loss + error, color=BLUE, alpha=0.2, lw=0,
                        label="95 %, choice of samples")  # fmt: skip
    ax.plot(t, loss, "-o", color=BLUE, lw=1.6, ms=4, label=f"loss of {summary['num_samples']} samples")
    for place, name in ((0.0, START), (1.0, END)):
        at = loss[t == place]
        ax.axvline(place, color=GREY, lw=0.8, ls=":")
        ax.plot([place], at, "o", color=VERMILION, ms=6, zorder=3)
        ax.annotate(name, (place, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                    ha="center", fontsize="small", color=GREY)  # fmt: skip
    seen = loss[np.isfinite(loss)]
    room = 0.12 * (np.ptp(seen) or max(abs(seen).max(), 1e-12))
    ax.set_ylim(seen.min() - 0.6 * room, seen.max() + 2 * room)  # a parabola that leaves the loss does not squeeze it
    ax.set_xlabel(r"place $t$ on the line $W^0 + t\,v$")
    ax.set_ylabel(f"loss{loss_unit(results)}")
    ax.legend(edgecolor="none", framealpha=0.9, fontsize="small")
    return ax


def plot_loss_plane(results: Results, ax: Any = None) -> Any:
    """Contours of the loss on the plane of the displacement and a random direction, with both sets of weights.

    Args:
        results: a run that has ``loss_plane``.
        ax: where to draw.
    """
    ax = new_axes(5.6, 4.0) if ax is None else ax
    summary = results.quantities["loss_plane"]
    loss = plane_values(summary)
    levels = np.unique(np.quantile(loss[np.isfinite(loss)], np.linspace(0, 1, 15)))
    along, across = np.array(summary["along"]), np.array(summary["across"])
    shown = np.ma.masked_invalid(loss)
    if min(loss.shape) > 1 and len(levels) > 1:
        filled = ax.contourf(along, across, shown, levels=levels, cmap="cividis", norm=BoundaryNorm(levels, 256))
        ax.contour(along, across, shown, levels=levels, colors="white", linewidths=0.4)
        bar = ax.figure.colorbar(filled, ax=ax, format="%.3g")
        bar.set_label(f"loss{loss_unit(results)}")
    ax.plot([0, 1], [0, 0], "-", color="white", lw=1.2)
    for place, name in ((0.0, START), (1.0, END)):
        ax.plot([place], [0], "o", color=VERMILION, mec="white", ms=7, zorder=3)
        ax.annotate(name, (place, 0), xytext=(0, 8), textcoords="offset points", ha="center", fontsize="small",
                    bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8})  # fmt: skip
    ax.set_xlabel(r"place $t$ along the displacement")
    ax.set_ylabel("along a random direction (norms of the filters)")
    return ax


def plane_values(summary: Mapping[str, Any]) -> np.ndarray:
    """The losses of ``loss_plane``, ``[across, along]``, NaN where there is none."""
    return np.array([[np.nan if x is None else x for x in row] for row in summary["loss"]], dtype=float)
