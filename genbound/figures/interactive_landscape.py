"""Interactive figures (plotly) of the loss beside the fine-tuned weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from genbound.figures.interactive_style import described, figure, with_legend
from genbound.figures.landscape import parabola_at, path_columns, plane_values
from genbound.figures.style import BLUE, ORANGE, VERMILION
from genbound.results.results import Results


def loss_path_figure(results: Results) -> Any:
    """The loss along the displacement with its parabola, in the unit of the loss."""
    summary = results.quantities["loss_path"]
    column = path_columns(summary)
    t, loss = column["t"], column["value"]
    fine = np.linspace(t.min(), t.max(), 100)
    fig = figure(title_text="Loss from the pretrained to the fine-tuned weights")
    fig.add_scatter(x=fine.tolist(), y=parabola_at(summary, fine).tolist(), mode="lines",
                    name="parabola of slope and curvature at W", line={"color": ORANGE, "dash": "dash"},
                    hoverinfo="skip")  # fmt: skip
    fig.add_scatter(x=t.tolist(), y=loss.tolist(), mode="lines+markers", name="loss", line={"color": BLUE},
                    error_y={"type": "data", "array": (1.96 * column["data_sem"]).tolist()},
                    hovertemplate="t = %{x}: %{y:.4g}<extra></extra>")  # fmt: skip
    ends = [float(loss[t == place][0]) for place in (0.0, 1.0)]
    fig.add_scatter(x=[0, 1], y=ends, mode="markers", name="pretrained (0) and fine-tuned (1)",
                    marker={"color": VERMILION, "size": 10}, hovertemplate="%{y:.4g}<extra></extra>")  # fmt: skip
    seen = loss[np.isfinite(loss)]
    room = 0.25 * (float(np.ptp(seen)) or 1e-12)
    fig.update_xaxes(title="place t on the line W⁰ + t v")
    fig.update_yaxes(title="loss", range=[float(seen.min()) - room, float(seen.max()) + room])
    caption = (
        "The loss on the straight line between the weights and beyond it, and the parabola that slope and curvature "
    )
    caption += "at the fine-tuned weights predict. Where they part, the Hessian says little."
    return described(with_legend(fig), caption, f"Loss {ends[0]:.3g} at t = 0, {ends[1]:.3g} at t = 1.")


def loss_plane_figure(results: Results) -> Any:
    """Contours of the loss on the plane of the displacement and a random direction, in the unit of the loss."""
    summary = results.quantities["loss_plane"]
    fig = figure(420, title_text="Loss around the displacement")
    fig.add_contour(x=summary["along"], y=summary["across"], z=plane_values(summary).tolist(), colorscale="Cividis",
                    colorbar={"title": "loss"}, hovertemplate="(%{x}, %{y}): %{z:.4g}<extra></extra>")  # fmt: skip
    fig.add_scatter(x=[0, 1], y=[0, 0], mode="lines+markers", name="pretrained (0) to fine-tuned (1)",
                    marker={"color": VERMILION, "size": 10}, line={"color": "white"}, hoverinfo="skip")  # fmt: skip
    fig.update_xaxes(title="place t along the displacement")
    fig.update_yaxes(title="random direction")
    values = plane_values(summary)
    caption = (
        "The loss on the plane of the displacement and a random direction, one unit of which is as long as each filter."
    )
    said = f"From {np.nanmin(values):.3g} to {np.nanmax(values):.3g} on the plane."
    return described(with_legend(fig), caption, said)
