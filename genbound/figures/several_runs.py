"""Plots of several runs: measures against the gap, and over what was varied. They draw on axes and return them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from genbound.errors import GenboundError
from genbound.figures.bounds import LABELS, bounds_of, plot_bounds
from genbound.figures.one_run import save_plots
from genbound.figures.style import BLUE, GREY, ORANGE, STYLE, VERMILION, new_axes, save_figure, words
from genbound.files import file_name
from genbound.results.correlation import Correlations
from genbound.results.gap import UNITS
from genbound.results.results import read_samples
from genbound.results.runs import as_results

NAMED = 15  # runs whose names stand beside their points, where there are few panels
PANELS_ACROSS, PANEL = 4, (2.7, 2.4)  # of a figure of many measures; inches


def plot_correlation(table: pd.DataFrame, measure: str, ax: Any = None, gap: str = "loss", label: bool = True) -> Any:
    """A measure against the gap, one point a run, with the coefficients.

    The least-squares line has its 95 % confidence band.

    Args:
        table: columns ``gap`` and the measure, runs as index, one data set.
        measure: its column.
        ax: where to draw.
        gap: ``loss`` or ``error``, for the axis.
        label: write the runs' names beside the points.
    """
    ax = new_axes(4.2, 3.4) if ax is None else ax
    table = table[np.isfinite(table[measure])]
    x, y = table[measure].to_numpy(float), table["gap"].to_numpy(float)
    if len(x) > 2 and np.ptp(x) > 0:
        fit = stats.linregress(x, y)
        grid = np.linspace(x.min(), x.max(), 100)
        line = fit.intercept + fit.slope * grid
        residual = math.sqrt(((y - fit.intercept - fit.slope * x) ** 2).sum() / (len(x) - 2))
        spread = np.sqrt(1 / len(x) + (grid - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
        band = stats.t.ppf(0.975, len(x) - 2) * residual * spread
        ax.fill_between(grid, line - band, line + band, color=ORANGE, alpha=0.18, lw=0, label="95 % band of the line")
        ax.plot(grid, line, color=ORANGE, lw=1.6, label="least squares")
        tau, rho = stats.kendalltau(x, y).statistic, stats.pearsonr(x, y).statistic
        ax.set_title(f"Pearson {rho:.2f}, Kendall {tau:.2f}", fontsize="medium")
    ax.plot(x, y, "o", color=BLUE, ms=4.5)
    if label:
        _name_points(ax, x, y, [words(str(name)) for name in table.index])
    ax.set_xlabel(words(measure))
    ax.set_ylabel(f"generalization gap ({LABELS.get(gap, gap)})")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def _name_points(ax: Any, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Names beside their points: by adjustText where it is installed (the extra ``plots``)."""
    style = {"fontsize": 6.5, "color": GREY}
    try:
        from adjustText import adjust_text
    except ImportError:
        # In turns below right and above left: off a rising line, and neighbours out of each other's way. At the ends of
        # the axis on the side where the plot goes on.
        for place, index in enumerate(np.argsort(x, kind="stable")):
            along = (x[index] - x.min()) / (np.ptp(x) or 1.0)
            down = place % 2 == 0
            right = along < 0.3 or down and along < 0.7
            offset, side = (4 if right else -4, -8 if down else 4), "left" if right else "right"
            ax.annotate(names[index], (x[index], y[index]), textcoords="offset points", xytext=offset, ha=side, **style)
        return
    texts = [ax.text(*place, name, **style) for *place, name in zip(x, y, names, strict=True)]
    adjust_text(texts, x=x, y=y, ax=ax, ensure_inside_axes=True)


def plot_over(table: pd.DataFrame, measure: str, over: str, ax: Any = None, gap: str = "loss") -> Any:
    """A measure and the gap over what was varied (a distance, a hyper-parameter): do they rise and fall together?

    Both stand on one axis where they are of the same size, else the measure has an axis of its own on the right, which
    the gap's axes know as ``ax.right_ax``.

    Args:
        table: columns ``gap``, the measure, and ``over`` either as a column or in ``hyperparameters``; one data set.
        measure: its column.
        over: column or hyper-parameter, of numbers.
        ax: where to draw.
        gap: ``loss`` or ``error``, for the axis.
    """
    ax = new_axes(4.2, 3.4) if ax is None else ax
    x = varied_values(table, over)
    keep = np.isfinite(x) & np.isfinite(table[measure].to_numpy(float)) & np.isfinite(table["gap"].to_numpy(float))
    order = np.flatnonzero(keep)[np.argsort(x[keep], kind="stable")]
    found, values = table["gap"].to_numpy(float)[order], table[measure].to_numpy(float)[order]
    ratio = np.abs(values).max() / max(np.abs(found).max(), 1e-300) if len(order) else 1.0
    apart = not 1 / 3 <= ratio <= 3
    other = ax.twinx() if apart else ax
    lines = other.plot(x[order], values, "-o", color=BLUE, lw=1.8, ms=5, label=words(measure))
    title = f"generalization gap ({LABELS.get(gap, gap)})"
    lines += ax.plot(x[order], found, "--s", color=VERMILION, lw=1.8, ms=5, label=title)
    ax.set_xlabel(words(over))
    ax.set_ylabel(title if apart else "value")
    if apart:
        other.set_ylabel(words(measure), color=BLUE)
        other.spines["right"].set_visible(True)
        other.spines["top"].set_visible(False)
        ax.yaxis.label.set_color(VERMILION)
        ax.right_ax = other
    ax.legend(lines, [line.get_label() for line in lines], frameon=False, fontsize="small", loc="best")
    return ax


def varied_values(table: pd.DataFrame, over: str) -> np.ndarray:
    """A column of the table, or a hyper-parameter of its runs, as numbers; NaN where there is none."""
    if over in table and over not in ("data", "hyperparameters"):
        return table[over].to_numpy(float)
    stated = [s.get(over) if isinstance(s, Mapping) else None for s in table.get("hyperparameters", [{}] * len(table))]
    numbers = [float(v) if isinstance(v, int | float) else math.nan for v in stated]
    if not np.isfinite(numbers).any():
        known = [c for c in table if c not in ("data", "hyperparameters")]
        known += list(dict.fromkeys(k for s in table.get("hyperparameters", []) if isinstance(s, Mapping) for k in s))
        raise GenboundError(
            f"{over!r} is no measure and no numeric hyper-parameter of the runs; there are {', '.join(known)}"
        )
    return np.array(numbers)


def save_correlation_plots(
    found: Correlations, directory: str | Path, suffix: str = "png", over: str | None = None
) -> list[Path]:
    """All measures in one figure of small panels: against the gap, and in a second one with it over what was varied.

    Args:
        found: what :func:`~genbound.results.correlation.correlate` found; each data set has panels of its own.
        directory: where the files go.
        suffix: ``png``, ``pdf`` or ``svg``.
        over: a measure or a numeric hyper-parameter.

    Returns:
        The files, ``correlation.png`` and ``over_NAME.png``.
    """
    table, gap = found.points, found.gap
    panels = [
        (str(data), measure, group) for data, group in table.groupby("data", sort=False) for measure in found.measures
    ]
    named = max(len(group) for *_, group in panels) <= NAMED and len(panels) <= PANELS_ACROSS if panels else False
    drawings = {"correlation": lambda group, m, ax: plot_correlation(group, m, ax, gap, label=named)}
    if over is not None:
        varied_values(table, over)
        drawings[f"over_{over}"] = lambda group, m, ax: plot_over(group, m, over, ax, gap)
    saved = []
    for kind, draw in drawings.items():
        chosen = [panel for panel in panels if panel[1] != over]
        if not chosen:
            continue
        with matplotlib.rc_context(STYLE | {"font.size": 7.5}):
            figure = _small_multiples(chosen, draw, several=table["data"].nunique() > 1)
        saved.append(save_figure(figure, Path(directory) / f"{file_name(kind)}.{suffix}"))
    return saved


def _small_multiples(
    panels: Sequence[tuple[str, str, pd.DataFrame]], draw: Callable[[pd.DataFrame, str, Any], Any], several: bool
) -> Figure:
    """A figure of ``(data set, measure, runs)``, each drawn on its axes; what all panels share is said once."""
    across = min(PANELS_ACROSS, len(panels))
    rows = math.ceil(len(panels) / across)
    size = PANEL if len(panels) > 1 else (4.2, 3.4)
    figure = Figure(figsize=(size[0] * across, size[1] * rows), layout="constrained")
    every = figure.subplots(rows, across, squeeze=False).ravel()
    for place, (ax, (data, measure, group)) in enumerate(zip(every, panels, strict=False)):
        draw(group, measure, ax)
        if several:
            ax.set_title(f"{words(data)}\n{ax.get_title()}".strip(), fontsize="medium")
        if place and ax.get_legend() is not None and not hasattr(ax, "right_ax"):
            ax.get_legend().remove()
        if place % across:
            ax.set_ylabel("")
    for ax in every[len(panels) :]:
        ax.remove()
    return figure


def save_all(runs: Iterable[str | Path], directory: str | Path | None = None, suffix: str = "png") -> list[Path]:
    """Every plot of each run, and of several runs together."""
    named, saved = as_results(runs), []
    for name, results in named.items():
        folder = Path(results.path) if directory is None else Path(directory)
        folder = folder.parent if folder.is_file() else folder
        if directory is not None and len(named) > 1:
            folder = folder.joinpath(*map(file_name, name.split("/")))
        saved += save_plots(read_samples(results), folder, suffix)
    if directory is not None and len(named) > 1:
        for unit in UNITS:
            if bounds_of(named, unit)[0]:
                with matplotlib.rc_context(STYLE):
                    saved.append(
                        save_figure(plot_bounds(named, unit).figure, Path(directory) / f"bounds_{unit}.{suffix}")
                    )
    return saved
