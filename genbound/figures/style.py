"""How all plots look: colours, marks, axes on a figure of their own, and how a figure is written."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from genbound.files import write_atomically

# Okabe and Ito's colours, told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6F6F6F"

# One for each run, in turns.
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", "#000000")
MARKERS = "osD^vP*"

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}


class PlotFigure(Figure):
    """A figure that no window system knows of; a notebook shows it by itself, with a text for who cannot see it."""

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return {"image/png": buffer.getvalue()}, {"image/png": {"alt": alternative_text(self)}}


def new_axes(width: float = 5.5, height: float = 3.6) -> Any:
    """Axes on a figure of their own."""
    with matplotlib.rc_context(STYLE):
        return PlotFigure(figsize=(width, height), layout="constrained").add_subplot()


def legend_below(ax: Any) -> None:
    """The legend under the axis and its title, where it covers no mark."""
    under = ax.transAxes + ScaledTranslation(0, -34 / 72, ax.figure.dpi_scale_trans)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0.0, 0.0), bbox_transform=under,
              ncols=3, borderaxespad=0.0, columnspacing=1.4, handlelength=1.6)  # fmt: skip


def alternative_text(figure: Figure) -> str:
    """What a figure shows, from what is written on it: titles, axes and the legend's entries, without formulas."""
    said = []
    for ax in figure.axes:
        title, x, y = (_spoken(text) for text in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))
        axes = " over ".join(part for part in (y, x) if part)
        entries = [_spoken(entry) for entry in ax.get_legend_handles_labels()[1]]
        shown = f", with {', '.join(entries)}" if entries else ""
        if title or axes:
            said.append(": ".join(part for part in (title, axes) if part) + shown)
    return "Plot of " + "; ".join(said) if said else "Plot"


def _spoken(text: str) -> str:
    return " ".join(re.sub(r"\$[^$]*\$", " ", text).split())


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of its suffix; text in SVG stays text."""
    with matplotlib.rc_context(STYLE):
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=160, format=path.suffix[1:]))
    return path


def words(text: str) -> str:
    """Somebody's text as a plot writes it: of a length that fits, and dollars are no formulas."""
    text = text if len(text) <= 60 else f"{text[:29]}…{text[-30:]}"
    return text.replace("$", r"\$")


def shorten(name: str, longest: int = 44) -> str:
    """A parameter name without what all of them share."""
    name = name.removesuffix(".weight")
    return words(name if len(name) <= longest else "…" + name[-longest:])
