"""Interactive figures (plotly) of the Hessian's spectrum."""

from __future__ import annotations

from typing import Any

from genbound.estimators.curvature_kinds import CALLED
from genbound.figures.interactive_style import described, figure, shown, with_legend
from genbound.figures.spectrum import LOWEST, MOST, curve_of, largest_of_layers
from genbound.figures.style import BLUE, VERMILION
from genbound.formatting import digits
from genbound.results.results import Results


def spectrum_figure(results: Results) -> Any:
    """Density of the eigenvalues of all layers together, a share per unit of eigenvalue, and the two ends."""
    summary = results.quantities["hessian_spectrum"]
    row = summary["total"]
    grid, mean, _ = curve_of(row)
    floor = LOWEST * float(mean.max())
    fig = figure(title_text=f"{CALLED[summary['curvature']]} spectrum, all layers")
    fig.add_scatter(x=grid.tolist(), y=[d if d > floor else None for d in mean.tolist()], mode="lines", name="density",
                    line={"color": BLUE}, hovertemplate="%{x:.4g}: %{y:.3g}<extra></extra>")  # fmt: skip
    for end, name in ((row["smallest"], "smallest"), (row, "largest")):
        fig.add_scatter(x=[end["value"]], y=[floor], mode="markers", marker={"color": VERMILION, "size": 9},
                        name=f"{name}: {digits(end['value'])}", hovertemplate="%{x:.6g}<extra></extra>")  # fmt: skip
    fig.update_xaxes(title="eigenvalue")
    fig.update_yaxes(type="log", title="share of the eigenvalues per unit", exponentformat="power")
    caption = "How the eigenvalues of all layers are spread, with the smallest and the largest one."
    said = f"From {digits(row['smallest']['value'])} to {digits(row['value'])}."
    return described(with_legend(fig), caption, said)


def largest_eigenvalues_figure(results: Results) -> Any:
    """The largest eigenvalue of each layer's own block, largest first, with its sides."""
    summary = results.quantities["hessian_spectrum"]
    every = largest_of_layers(summary)
    rows = dict(list(every.items())[:MOST])
    names, values = shown(rows), [row["value"] for row in rows.values()]
    above = [max(row["upper"] - row["value"], 0.0) for row in rows.values()]
    called = CALLED[summary["curvature"]]
    fig = figure(150 + 20 * len(rows), title_text=f"Largest eigenvalue of each layer's {called} block")
    fig.add_bar(x=values, y=names, orientation="h", marker={"color": BLUE}, showlegend=False,
                error_x={"type": "data", "symmetric": False, "array": above, "arrayminus": [0.0] * len(rows)},
                hovertemplate="%{y}: %{x:.4g}<extra></extra>")  # fmt: skip
    fig.update_yaxes(
        categoryorder="array",
        categoryarray=names[::-1],
        tickvals=names,
        ticktext=shown(name.removesuffix(".weight")[-28:] for name in rows),
        tickfont={"size": 10},
    )
    fig.update_xaxes(title="eigenvalue")
    caption = "The largest eigenvalue of each layer's own block; the thin line reaches to its upper side."
    caption += f" {len(every) - len(rows)} smaller ones are left out." if len(rows) < len(every) else ""
    said = f"The largest of {len(every)}: {next(iter(rows))} with {digits(values[0])}." if rows else ""
    return described(fig, caption, said)
