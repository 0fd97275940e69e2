"""Interactive figures of results (plotly), for the report.

They show the same numbers as the plots, with layers and samples to point at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from genbound.figures.bounds import GAP, LABELS, VACUOUS, axis_of, bounds_of, yardsticks
from genbound.figures.broken_axis import NEAR, PowersOfTen
from genbound.figures.interactive_certificate import certificate_figure
from genbound.figures.interactive_landscape import loss_path_figure, loss_plane_figure
from genbound.figures.interactive_spectrum import largest_eigenvalues_figure, spectrum_figure
from genbound.figures.interactive_style import described, figure, shown, with_legend
from genbound.figures.one_run import kinds_of, layer_shares, whole_error
from genbound.figures.style import BLUE, COLOURS, GREEN, GREY, ORANGE, VERMILION
from genbound.formatting import digits, value_text, with_error
from genbound.results.results import Results
from genbound.results.sample_rows import in_memory

FEW = 30  # runs whose names stand beside their points
DASHES = {GAP: "dash", VACUOUS: "dot"}
SYMBOLS = ("circle", "square", "diamond", "triangle-down", "triangle-up", "pentagon", "star")


def bounds_figure(runs: Mapping[str, Results], unit: str) -> Any | None:
    """Base-10 logarithms of the bounds of one unit, with the measured gaps and the vacuous lines.

    Args:
        runs: name -> results.
        unit: ``loss`` (in nats) or ``error`` (a fraction).

    Returns:
        A figure; ``None`` if there are no bounds of that unit.
    """
    names, rows = bounds_of(runs, unit)
    if not names:
        return None
    fig = figure(190 + 34 * len(names), title_text=f"Bounds on the gap in the {unit}")
    axis = axis_of(runs, unit)
    lines: dict[str, list[float]] = {}
    for index, ((name, run), title) in enumerate(zip(runs.items(), shown(runs), strict=True)):
        colour, found = COLOURS[index % len(COLOURS)], [b for b in names if b in rows[name]]
        fig.add_scatter(
            x=axis.to_axis([rows[name][b]["log10"] for b in found]).tolist(), y=shown(found), mode="markers",
            name=title, legendgroup=title,
            marker={"color": colour, "size": 10, "symbol": SYMBOLS[index % len(SYMBOLS)]},
            text=[
                value_text(row) + (", below the gap" if row.get("below_gap") else "")
                for row in (rows[name][b] for b in found)
            ],
            hovertemplate="%{y}: %{text}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
        for what, value in yardsticks(run, unit).items():
            lines.setdefault(what, []).append(value)
            fig.add_scatter(
                x=[float(axis.to_axis(math.log10(value)))] * 2, y=shown([names[0], names[-1]]), mode="lines",
                name=f"{what}, {title}", legendgroup=title, showlegend=False,
                line={"color": colour if len(runs) > 1 else GREY, "dash": DASHES[what], "width": 1.5},
                hovertemplate=f"{what}: {value:.3g}<extra>{title}</extra>",
            )  # fmt: skip
    for what in lines:  # each once: of which run a line is, its colour says
        fig.add_scatter(x=[None], y=[None], mode="lines", name=what, line={"color": GREY, "dash": DASHES[what]})
    fig.update_yaxes(categoryorder="array", categoryarray=shown(names))
    _use_axis(fig, axis, f"bound on the gap ({LABELS.get(unit, unit)})")
    caption = "Each mark is a row of the table, the smallest at the bottom" + (
        f"; lines: {' and '.join(_ranged(what, values) for what, values in lines.items())}." if lines else "."
    )
    return described(with_legend(fig), caption, _ends(names, rows))


def _ranged(what: str, values: Sequence[float]) -> str:
    """A yardstick with its value, or with the least and the largest one of several runs."""
    ends = list(dict.fromkeys(map(digits, (min(values), max(values)))))
    return f"{what} ({' to '.join(ends)})"


def _ends(names: Sequence[str], rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The smallest and the largest bound of a picture, in words."""
    said = []
    for word, name in (("smallest", names[0]), ("largest", names[-1])):
        values = [value_text(found[name]) for found in rows.values() if name in found]
        said.append(f"{word}: {name} with {', '.join(values[:3])}{' …' if len(values) > 3 else ''}")
    return f"{len(names)} bounds; {'; '.join(said)}."


def _use_axis(fig: Any, axis: PowersOfTen, title: str) -> None:
    """Ticks of powers of ten, and a mark where the scale changes; places on the axis are ``axis.to_axis``."""
    if axis.cut is not None:
        fig.add_vrect(x0=NEAR - 0.004, x1=NEAR + 0.004, fillcolor="grey", opacity=0.3, line_width=0,
                      annotation={"text": "the scale changes", "font": {"size": 10}})  # fmt: skip
    places, labels = zip(*axis.ticks(), strict=True)
    fig.update_xaxes(
        title=title,
        range=[0, 1],
        tickvals=axis.to_axis(places).tolist(),
        ticktext=[label.replace("$10^{", "1e").replace("}$", "") for label in labels],
    )


def spread_figure(runs: Mapping[str, Results], unit: str) -> Any | None:
    """How the bounds of one unit are spread over many runs, and the measured gap, on a log axis.

    Args, Returns: those of :func:`bounds_figure`.
    """
    names, rows = bounds_of(runs, unit)
    if not names:
        return None
    values = {b: [row[b]["log10"] for row in rows.values() if b in row] for b in names}
    gaps = [found[GAP] for found in (yardsticks(run, unit) for run in runs.values()) if GAP in found]
    values |= {GAP: [math.log10(gap) for gap in gaps]} if gaps else {}
    fig = figure(150 + 34 * len(values), title_text=f"Bounds on the gap in the {unit}, {len(runs)} runs")
    axis = axis_of(runs, unit)
    ends = np.array([np.quantile(found, [0, 0.25, 0.5, 0.75, 1]) for found in values.values()]).T
    ends = axis.to_axis(ends).round(5).tolist()
    places = ("lowerfence", "q1", "median", "q3", "upperfence")
    fig.add_box(y=shown(values), **dict(zip(places, ends, strict=True)), orientation="h", name="",
                fillcolor="rgba(0,0,0,0)", line={"color": BLUE}, showlegend=False)  # fmt: skip
    fig.update_yaxes(categoryorder="array", categoryarray=shown(values))
    _use_axis(fig, axis, f"bound on the gap ({LABELS.get(unit, unit)})")
    caption = "Whiskers reach over all runs, a box over the middle half of them; the line in it is the median."
    return described(fig, caption, _ends(names, rows))


def noise_figure(results: Results) -> Any:
    """Noise stability with 95 % intervals and its Hessian approximation over sigma, in the unit of the loss."""
    rows = results.quantities["noise_stability"]["sigmas"]
    sigma = [row["sigma"] for row in rows]
    fig = figure(title_text="Noise stability and ½ σ² Tr H")
    inside = [row["sigma"] for row in rows if row.get("quadratic_regime")]
    if inside:
        fig.add_scatter(x=[None], y=[None], mode="markers", name="quadratic regime",
                        marker={"color": GREEN, "opacity": 0.3, "symbol": "square", "size": 12})  # fmt: skip
        fig.add_vrect(x0=min(inside) / 1.12, x1=max(inside) * 1.12, fillcolor=GREEN, opacity=0.12, line_width=0)
    fig.add_scatter(
        x=sigma,
        y=[row["hessian_approximation"] for row in rows],
        mode="lines",
        name="½ σ² Tr H",
        line={"color": ORANGE},
    )
    known = [row for row in rows if row.get("reliable", True)]
    fig.add_scatter(
        x=[row["sigma"] for row in known], y=[row["value"] for row in known], mode="markers",
        name="noise stability (95 % interval)", marker={"color": BLUE, "size": 8},
        error_y={"type": "data", "array": [1.96 * whole_error(row) for row in known]},
        text=[with_error(row["value"], whole_error(row)) for row in known],
        hovertemplate="σ = %{x}: %{text}<extra></extra>",
    )  # fmt: skip
    unknown = [row for row in rows if row not in known]
    if unknown:
        fig.add_scatter(
            x=[row["sigma"] for row in unknown], y=[row["value"] for row in unknown], mode="markers",
            name="not known: heavy tail", marker={"color": BLUE, "size": 8, "symbol": "circle-open"},
        )  # fmt: skip
    positive = all(row["value"] > 0 and row["hessian_approximation"] > 0 for row in rows)
    fig.update_xaxes(type="log", title="noise standard deviation σ", tickvals=sigma, ticktext=[f"{s:g}" for s in sigma])
    fig.update_yaxes(type="log" if positive else "linear", title="rise of the loss", exponentformat="power")
    caption = "Points: measured by noise on the weights. Line: what the Hessian's trace predicts. They agree where the "
    caption += "loss is quadratic (shaded)."
    said = [f"At σ = {row['sigma']:g}: {with_error(row['value'], whole_error(row))}" for row in (rows[0], rows[-1])]
    return described(with_legend(fig), caption, f"{'; '.join(said)}.")


def layers_figure(results: Results, most: int = 30) -> Any:
    """Share of each layer in the Hessian distance bound in per cent, largest first, coloured by its kind.

    Args:
        results: a run that has ``max_quadratic_form``.
        most: layers to show; what the others add is said below.
    """
    every, kinds = layer_shares(results), kinds_of(results)
    shares = dict(list(every.items())[:most])
    fig = figure(170 + 20 * len(shares), title_text="Which layers the bound comes from")
    for kind, colour in dict(kinds[name] for name in shares).items():
        names = [name for name in shares if kinds[name][0] == kind]
        fig.add_bar(x=[shares[n][1] for n in names], y=shown(names), orientation="h", name=shown([kind])[0],
                    marker={"color": colour}, hovertemplate="%{y}: %{x:.3g} %<extra></extra>", showlegend=True,
                    text=[f"{digits(shares[n][1], 2)} %" for n in names], textposition="outside",
                    cliponaxis=False)  # fmt: skip
    fig.update_yaxes(
        categoryorder="array",
        categoryarray=shown(shares)[::-1],
        tickvals=shown(shares),
        ticktext=shown(name.removesuffix(".weight")[-28:] for name in shares),
        tickfont={"size": 10},
    )
    largest = max((share for _, share in shares.values()), default=1.0)
    fig.update_xaxes(title="share of Σ √max vᵀH⁺v (%)", range=[0, 1.15 * largest])
    left = [share for _, share in list(every.values())[most:]]
    rest = f" {len(left)} of {len(every)} layers are left out, with {digits(sum(left))} %." if left else ""
    caption = f"What each layer adds to the Hessian distance, in per cent of the sum, coloured by its kind.{rest}"
    first = [f"{name}: {digits(share)} %" for name, (_, share) in list(shares.items())[:3]]
    return described(with_legend(fig), caption, f"The largest of {len(every)}: {', '.join(first)}.")


def samples_figure(results: Results) -> Any:
    """vᵀH⁺v of each sample in the unit of the loss, added up over the layers, largest first; the largest is marked."""
    table = in_memory(results.samples).dropna(subset="max_quadratic_form_upper")  # traces may be of other samples
    table = table.groupby("sample")[["max_quadratic_form_lower", "max_quadratic_form_upper"]].sum()
    table = table.sort_values("max_quadratic_form_upper", ascending=False, kind="stable")
    fig = figure(title_text="vᵀH⁺v over the samples")
    rank = list(range(1, len(table) + 1))
    for side, dash in (("upper", "solid"), ("lower", "dot")):
        fig.add_scatter(x=rank, y=table[f"max_quadratic_form_{side}"].tolist(), mode="lines", name=f"{side} side",
                        text=table.index.tolist(), line={"color": BLUE, "dash": dash, "width": 1.5},
                        hovertemplate="sample %{text}: %{y:.4g}<extra></extra>")  # fmt: skip
    fig.add_scatter(x=rank[:1], y=table["max_quadratic_form_upper"].tolist()[:1], mode="markers",
                    marker={"color": VERMILION, "size": 9}, name=f"sample {table.index[0]}")  # fmt: skip
    fig.update_xaxes(type="log", title="samples, largest first", dtick=1)
    positive = (table["max_quadratic_form_upper"] > 0).all()
    fig.update_yaxes(type="log" if positive else "linear", title="Σ vᵀH⁺v", exponentformat="power")
    caption = "Each sample's own vᵀH⁺v, added up over the layers; the bound takes the largest of each layer."
    column = table["max_quadratic_form_upper"]
    said = f"The largest of {len(column)} is sample {column.index[0]} with {digits(column.iloc[0])}; "
    return described(with_legend(fig), caption, f"{said}the median is {digits(column.median())}.")


# The plots that quantities name, as :data:`genbound.figures.one_run.PLOTS` has them.
FIGURES = {
    "noise_stability": noise_figure,
    "layers": layers_figure,
    "samples": samples_figure,
    "certificate": certificate_figure,
    "loss_path": loss_path_figure,
    "loss_plane": loss_plane_figure,
    "spectrum": spectrum_figure,
    "largest_eigenvalues": largest_eigenvalues_figure,
}


def correlation_figure(table: pd.DataFrame, measures: Sequence[str], data: str) -> Any:
    """Measures against the gap, one at a time, chosen from a menu.

    Args:
        table: columns ``gap`` and the measures, runs as index, one data set.
        measures: its columns, in the order of the menu.
        data: name of the data set.
    """
    (title,) = shown([data])
    fig = figure(
        420,
        title={"text": title, "y": 0.98, "font": {"size": 13}},
        margin={"l": 10, "r": 10, "t": 90, "b": 55},
    )
    columns = [[float(f"{x:.6g}") if math.isfinite(x) else None for x in table[m].astype(float)] for m in measures]
    few = len(table) <= FEW
    fig.add_scatter(x=columns[0], y=[float(f"{y:.6g}") for y in table["gap"]], text=shown(map(str, table.index)),
                    mode="markers+text" if few else "markers", textposition="bottom right", textfont={"size": 10},
                    marker={"color": BLUE, "size": 9 if few else 5},
                    hovertemplate="%{text}: %{x:.4g}, gap %{y:.4g}<extra></extra>")  # fmt: skip
    fig.update_layout(updatemenus=[_menu(measures, columns)], showlegend=False)
    fig.update_xaxes(title=shown(measures)[0])
    fig.update_yaxes(title="generalization gap")
    caption = "Each point is a run: a measure, chosen from the menu, against the gap. The table has the coefficients."
    return described(fig, caption, f"{len(table)} runs, {len(measures)} measures.")


def _menu(measures: Sequence[str], columns: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Puts another measure on the axis."""
    buttons = [
        {"label": m, "method": "update", "args": [{"x": [column]}, {"xaxis.title.text": m, "xaxis.autorange": True}]}
        for m, column in zip(shown(measures), columns, strict=True)
    ]
    return {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.12, "yanchor": "bottom"}
