"""How all interactive figures look (plotly)."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from genbound.errors import GenboundError


def figure(height: int = 380, **layout: Any) -> Any:
    """An empty figure in the report's style; plotly comes with the extra ``report``.

    Args:
        height: in pixels.
        layout: entries of plotly's layout, in place of the style's.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise GenboundError("the report needs plotly: pip install 'genbound[report]'") from error
    return go.Figure(
        layout={
            "height": height, "template": "plotly_white", "margin": {"l": 10, "r": 10, "t": 40, "b": 55},
            "font": {"size": 13}, "title": {"font": {"size": 15}},
            "legend": {"yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
            "xaxis": {"automargin": True}, "yaxis": {"automargin": True}, **layout,
        }
    )  # fmt: skip


def shown(texts: Iterable[str]) -> list[str]:
    """Somebody's texts as plotly shows them: no HTML, and no places for numbers."""
    return [html.escape(text).replace("%{", "%&#123;") for text in texts]


def with_legend(fig: Any) -> Any:
    """Room for the legend below the axis, one line an entry, as a phone needs it."""
    entries = sum(trace.showlegend is not False for trace in fig.data)
    fig.update_layout(height=fig.layout.height + 20 * entries, margin_b=fig.layout.margin.b + 20 * entries)
    return fig


def described(fig: Any, caption: str, alt: str) -> Any:
    """The figure with what the report writes beside it.

    Args:
        fig: a figure.
        caption: how it is read.
        alt: what it says, to those who do not see it.
    """
    fig.update_layout(meta={"caption": caption, "alt": alt})
    return fig
