"""Plots of results: functions of stored tables that draw on axes and return them. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from genbound.errors import GenboundError, did_you_mean
from genbound.figures.bounds import bounds_of, plot_bounds
from genbound.figures.certificate import has_certificate, plot_certificate
from genbound.figures.landscape import plot_loss_path, plot_loss_plane
from genbound.figures.spectrum import has_layers, has_total, plot_largest_eigenvalues, plot_spectrum
from genbound.figures.style import BLUE, COLOURS, GREEN, ORANGE, STYLE, VERMILION, new_axes, save_figure, shorten, words
from genbound.formatting import digits
from genbound.quantities.catalogue import reading_of
from genbound.results.gap import UNITS
from genbound.results.results import Results
from genbound.results.sample_rows import in_memory


def plot_noise_stability(results: Results | Mapping[str, Any], ax: Any = None, unit: str = "") -> Any:
    """Noise stability against its Hessian approximation over sigma, with error bars; the quadratic regime is shaded.

    Args:
        results: a run, or the quantity alone: ``sigmas``, rows of ``sigma``, ``value``, ``sem``,
            ``hessian_approximation`` and ``quadratic_regime``, and ``relative_rss``.
        ax: where to draw.
        unit: of the loss, for the axis.
    """
    ax = new_axes() if ax is None else ax
    quantity = results
    if isinstance(results, Results):
        quantity = results.quantities["noise_stability"]
        unit = unit or {"cross_entropy": "nats"}.get(results.config.get("loss"), "")
    rows = quantity["sigmas"]
    sigma, value, approximation = (
        np.array([row[key] for row in rows]) for key in ("sigma", "value", "hessian_approximation")
    )
    inside = sigma[np.array([row["quadratic_regime"] is True for row in rows])]
    reliable = np.array([row.get("reliable", True) for row in rows])
    if len(inside):
        ax.axvspan(inside.min() / 1.12, inside.max() * 1.12, color=GREEN, alpha=0.12, lw=0, label="quadratic regime")
    label = r"Hessian approximation $\frac{1}{2}\sigma^2\,\mathrm{Tr}\,H$"
    ax.plot(sigma, approximation, color=ORANGE, lw=1.8, label=label)
    error = 1.96 * np.array([whole_error(row) for row in rows])
    style = {"fmt": "o", "ms": 4.5, "color": BLUE}
    if reliable.any():
        label = "noise stability (95 % interval)"
        ax.errorbar(sigma[reliable], value[reliable], error[reliable], capsize=2.5, label=label, **style)
    if not reliable.all():
        ax.errorbar(sigma[~reliable], value[~reliable], mfc="none", label="not known: heavy tail", **style)
    ax.set_xscale("log")
    if (value - error * reliable > 0).all() and (approximation > 0).all():
        ax.set_yscale("log")
    ax.set_xticks(sigma, [f"{s:g}" for s in sigma], minor=False)
    ax.minorticks_off()
    ax.set_xlabel(r"noise standard deviation $\sigma$")
    ax.set_ylabel("rise of the loss" + (f" ({words(unit)})" if unit else ""))
    if quantity["relative_rss"] is not None:
        ax.set_title(f"Relative RSS {100 * quantity['relative_rss']:.3g} %", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    return ax


def whole_error(row: Mapping[str, Any]) -> float:
    """Standard error over the draws and, where not all training samples were measured, over their choice."""
    return math.hypot(row["sem"], row.get("data_sem") or 0.0)


def plot_layers(results: Results, ax: Any = None, most: int = 30) -> Any:
    """What each layer adds to the Hessian distance bound, in per cent of the sum, largest first, coloured by its kind.

    The black line is what its certified interval leaves open.

    Args:
        results: a run that has ``max_quadratic_form``.
        ax: where to draw.
        most: layers to show; what the others add is said below.
    """
    shares = layer_shares(results)
    names = list(shares)[:most]
    ax = new_axes(6.5, 1.5 + 0.22 * len(names)) if ax is None else ax
    kinds = kinds_of(results)
    for place, name in enumerate(names):
        low, share = shares[name]
        ax.barh(place, share, color=kinds[name][1], height=0.7)
        ax.plot([low, share], [place, place], "-", color="black", lw=0.9)
        ax.annotate(digits(share) + " %", (share, place), xytext=(3, 0), textcoords="offset points", va="center",
                    fontsize="x-small")  # fmt: skip
    for kind, colour in dict(kinds[name] for name in names).items():
        ax.barh([np.nan], [np.nan], color=colour, label=kind)
    ax.set_yticks(range(len(names)), [shorten(name) for name in names], fontsize="x-small")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.margins(x=0.12)
    left = list(shares)[most:]
    rest = f"\n{len(left)} of {len(shares)} layers are left out, with {digits(sum(shares[n][1] for n in left))} %"
    ax.set_xlabel(r"share of $\sum_i \sqrt{\max\, v_i^\top H_i^+ v_i}$ (%)" + (rest if left else ""))
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    return ax


def layer_shares(results: Results) -> dict[str, tuple[float, float]]:
    """Layer -> lower and upper side of its share in the Hessian distance bound, in per cent of the sum; largest first.

    Both are of the sum of the upper sides.
    """
    rows = results.quantities["max_quadratic_form"]["layers"]
    sides = {n: [math.sqrt(max(row[side] or 0.0, 0.0)) for side in ("lower", "upper")] for n, row in rows.items()}
    total = sum(upper for _, upper in sides.values()) or 1.0
    order = sorted(sides, key=lambda name: sides[name][1], reverse=True)
    return {name: (100 * sides[name][0] / total, 100 * sides[name][1] / total) for name in order}


def kinds_of(results: Results) -> dict[str, tuple[str, str]]:
    """Layer -> its kind (linear, convolution, …) and the kind's colour."""
    kinds = {row["name"]: row.get("kind") or "layer" for row in results.layer_rows}
    colours = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(dict.fromkeys(kinds.values()))}
    return {name: (kind, colours[kind]) for name, kind in kinds.items()}


def plot_samples(results: Results, ax: Any = None) -> Any:
    r"""How :math:`v^\top H^+ v`, added up over the layers, is distributed over the samples, and which is largest.

    Args:
        results: a run with ``samples``: rows of ``sample``, ``layer`` and ``max_quadratic_form`` from both sides, in
            the unit of the loss.
        ax: where to draw.
    """
    column = "max_quadratic_form_upper"
    table = in_memory(results.samples).dropna(subset=column)  # traces may be of other samples
    upper = table.groupby("sample")[column].sum()
    lower = table.groupby("sample")["max_quadratic_form_lower"].sum()
    order = np.argsort(-upper.to_numpy(), kind="stable")
    ax = new_axes() if ax is None else ax
    rank = np.arange(1, len(order) + 1)
    high, low = upper.to_numpy()[order], lower.to_numpy()[order]
    ax.fill_between(rank, np.maximum(low, 1e-300), high, color=BLUE, alpha=0.25, lw=0, step="mid", label="bracket")
    ax.plot(rank, high, color=BLUE, lw=1.2, drawstyle="steps-mid", label="upper side")
    ax.plot(rank[:1], high[:1], "o", color=VERMILION, ms=5)
    ax.annotate(f"sample {upper.index[order[0]]}", (rank[0], high[0]), textcoords="offset points", xytext=(8, 5),
                color=VERMILION, fontsize="small")  # fmt: skip
    ax.set_xscale("log")
    if (high > 0).all():
        ax.set_yscale("log")
        ax.set_ylim(bottom=max(high.min() / 3, high.max() * 1e-10))
    ax.set_xlabel("samples, largest first")
    ax.set_ylabel(r"$\sum_i v_i^\top H_i^+ v_i$")
    ax.legend(frameon=False, fontsize="small", loc="lower left")
    return ax


@dataclass(frozen=True)
class Plot:
    """A plot of one run's quantity, which names it in its row of the catalogue.

    Attributes:
        draw: ``results -> axes``.
        has_numbers: ``results ->`` whether there is something to draw.
    """

    draw: Callable[[Results], Any]
    has_numbers: Callable[[Results], bool] = lambda results: True


def _has_forms(results: Results) -> bool:
    return any(row["upper"] for row in results.quantities["max_quadratic_form"]["layers"].values())


def _has_samples(results: Results) -> bool:
    return _has_forms(results) and results.samples is not None and "max_quadratic_form_upper" in results.samples


PLOTS = {
    "noise_stability": Plot(plot_noise_stability),
    "layers": Plot(plot_layers, _has_forms),
    "samples": Plot(plot_samples, _has_samples),
    "certificate": Plot(plot_certificate, has_certificate),
    "loss_path": Plot(plot_loss_path),
    "loss_plane": Plot(plot_loss_plane),
    "spectrum": Plot(plot_spectrum, has_total),
    "largest_eigenvalues": Plot(plot_largest_eigenvalues, has_layers),
}


def plots_of(results: Results) -> list[str]:
    """Names of the plots that a run has the numbers for."""
    named = dict.fromkeys(plot for quantity in results.quantities for plot in reading_of(quantity).plots)
    return [plot for plot in named if PLOTS[plot].has_numbers(results)]


def drawings_of(results: Results) -> dict[str, Callable[..., Any]]:
    """Name -> ``ax -> axes`` of every plot that the results have the numbers for."""
    run = {Path(str(results.path or results.checkpoint.get("path") or "run")).name: results}
    drawings: dict[str, Callable[..., Any]] = {name: partial(PLOTS[name].draw, results) for name in plots_of(results)}
    return drawings | {f"bounds_{unit}": partial(plot_bounds, run, unit) for unit in UNITS if bounds_of(run, unit)[0]}


def draw(results: Results, name: str, ax: Any = None) -> Any:
    """The plot of this name; :meth:`genbound.results.results.Results.plot` says more."""
    drawings = drawings_of(results)
    if name not in drawings:
        known = ", ".join(drawings) or "none: nothing that is drawn was measured"
        raise GenboundError(f"these results have no plot {name!r}{did_you_mean(name, drawings)}; they have {known}")
    with matplotlib.rc_context(STYLE):
        return drawings[name](ax=ax)


def save_plots(results: Results, directory: str | Path, suffix: str = "png") -> list[Path]:
    """Draw every plot that the results have the numbers for, into ``NAME.suffix`` (``png``, ``pdf`` or ``svg``)."""
    return [
        save_figure(draw(results, name).figure, Path(directory) / f"{name}.{suffix}") for name in drawings_of(results)
    ]
