"""Interactive figure (plotly) of how a certificate comes about."""

from __future__ import annotations

from typing import Any

from genbound.figures.certificate import COLOURS, constant_error, parts_of
from genbound.figures.interactive_style import figure, with_legend
from genbound.results.results import Results


def certificate_figure(results: Results) -> Any:
    """Every certificate as a bar of its parts, in the order of the proof; a line at the best constant prediction."""
    bars = parts_of(results)
    names = list(bars)
    fig = figure(190 + 44 * len(bars), title_text="How the certificates come about", barmode="stack")
    for part in [part for part in COLOURS if any(part in parts for parts in bars.values())]:
        fig.add_bar(
            x=[parts.get(part, 0.0) for parts in bars.values()], y=names, orientation="h", name=part,
            marker={"color": COLOURS[part]}, hovertemplate="%{y}: %{x:.4g}<extra>" + part + "</extra>",
        )  # fmt: skip
    if (constant := constant_error(results)) is not None:
        fig.add_scatter(
            x=[constant] * 2, y=[names[0], names[-1]], mode="lines", name="best constant prediction",
            line={"color": "black", "dash": "dot", "width": 1.5}, hovertemplate="%{x:.4g}<extra></extra>",
        )  # fmt: skip
    fig.update_yaxes(categoryorder="array", categoryarray=names[::-1], tickfont={"size": 11})
    fig.update_xaxes(title="0–1 error, and what the guarantee adds to it", rangemode="tozero")
    return with_legend(fig)
