"""The figures of the study: one panel a data set, written where there is something to show."""

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import tables
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from tables import Row, gap, select

NAMES = {
    "cifar10": "EfficientNet-Lite0, CIFAR-10",
    "sst2": "MiniLM, SST-2",
    "mrpc": "MiniLM, MRPC",
    "digits": "demo, digits",
}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X<>dh"
HEIGHTS = {"study_correlation": 5.5}  # inches; it has a line a measure
SHOWN = ("cifar10", "sst2", "mrpc")


def figures(rows: list[Row], out: Path) -> list[Path]:
    """Draw all of them; the small task of the tests is drawn where there is no other."""
    tasks = [task for task in SHOWN if any(row["task"] == task for row in rows)] or ["digits"]
    wanted: dict[str, tuple[Callable, Callable]] = {
        "study_gap": (lambda task: len(related(rows, task)) >= 5, draw_gap("bounds", "training samples")),
        "study_gap_held_out": (lambda task: len(related(rows, task)) >= 5, draw_gap("held_out", "held-out samples")),
        "study_correlation": (lambda task: len(related(rows, task)) >= 5, draw_correlations),
        "study_stability": (lambda task: bool(select(rows, task, "stability")), draw_stability),
        "study_noise": (lambda task: bool(select(rows, task, "symmetric40")), draw_noise),
    }
    written = []
    with plt.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        for name, (has, draw) in wanted.items():
            panels = [task for task in tasks if has(task)]
            if not panels:
                continue
            figure, axes = plt.subplots(
                1, len(panels), figsize=(4.3 * len(panels), HEIGHTS.get(name, 3.3)), layout="constrained", squeeze=False
            )
            for axis, task in zip(axes[0], panels, strict=True):
                draw(axis, rows, task)
                axis.set_title(NAMES[task])
            figure.savefig(out / f"{name}.png", dpi=120)
            plt.close(figure)
            written.append(out / f"{name}.png")
    return written


def related(rows: list[Row], task: str) -> list[Row]:
    return [row for row in select(rows, task, "clean") if row.get("losses") and row.get("bounds")]


def draw_gap(where: str, samples: str) -> Callable:
    """The gap in the loss over the Hessian measure on training or on held-out samples."""

    def draw(axis, rows: list[Row], task: str) -> None:
        cells = [row for row in related(rows, task) if row.get(where)]
        for index, method in enumerate(sorted({row["method"] for row in cells})):
            own = [row for row in cells if row["method"] == method and row[where]["hessian_distance"] > 0]
            axis.plot(
                [row[where]["hessian_distance"] for row in own], [gap(row, "loss") for row in own], MARKERS[index],
                color=COLOURS[index % len(COLOURS)], ms=5, ls="", label=method.replace("_", " "),
            )  # fmt: skip
        axis.set(xlabel=f"Hessian measure, {samples}", ylabel="generalization gap (nats)", xscale="log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        below(axis, 4)

    return draw


def below(axis, columns: int) -> None:
    """The legend under the axes, where no point is."""
    axis.legend(
        fontsize=6.5,
        ncols=columns,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.5 / axis.figure.get_figheight()),
    )


def draw_correlations(axis, rows: list[Row], task: str) -> None:
    """Kendall's coefficient of every measure with its 95 % interval, for the gap in the loss and in the error."""
    for shift, kind in ((-0.15, "loss"), (0.15, "error")):
        table = tables.correlated(rows, task, kind).table.set_index("measure")
        names = sorted(table.index)
        found = table.loc[names]
        at = np.arange(len(names)) + shift
        axis.hlines(at, found["kendall_lower"], found["kendall_upper"], color=COLOURS[shift > 0], lw=1.5)
        axis.plot(found["kendall"], at, "o", color=COLOURS[shift > 0], ms=4, label=f"gap in the {kind}")
    axis.axvline(0, color="#999999", lw=0.8)
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.set(xlabel="Kendall's τ, 95 % interval", xlim=(-1, 1))
    below(axis, 2)


def draw_stability(axis, rows: list[Row], task: str) -> None:
    found = select(rows, task, "stability")[0]["results"]["quantities"]["noise_stability"]["sigmas"]
    sigma = [s["sigma"] for s in found]
    axis.errorbar(
        sigma, [s["value"] for s in found], [1.96 * s["sem"] for s in found], fmt="o", color=COLOURS[0], ms=4,
        capsize=2, label="noise stability (95 %)",
    )  # fmt: skip
    axis.plot(sigma, [s["hessian_approximation"] for s in found], "-", color=COLOURS[3], label="½σ² Tr H")
    axis.set(xlabel="σ", ylabel="rise of the loss (nats)")
    axis.set_xticks(sigma)
    axis.legend(fontsize=7, frameon=False)


def draw_noise(axis, rows: list[Row], task: str) -> None:
    groups = [g for g in ("symmetric20", "symmetric40", "symmetric60", "correlated40") if select(rows, task, g)]
    for index, method in enumerate(tables.METHODS):
        for place, group in enumerate(groups):
            values = [100 * r["accuracy"]["test"] for r in select(rows, task, group) if r["method"] == method]
            if values:
                x = place + 0.18 * (index - 1.5)
                label = method if place == 0 else None
                axis.bar(x, np.mean(values), 0.16, color=COLOURS[index], alpha=0.55, label=label)
                axis.plot([x] * len(values), values, "k.", ms=3)
    axis.set_xticks(range(len(groups)), [f"{g[:-2]}, {g[-2:]} %" for g in groups])
    axis.set(ylabel="test accuracy (%)")
    low = min(100 * r["accuracy"]["test"] for g in groups for r in select(rows, task, g))
    axis.set_ylim(max(0, low - 10), None)
    below(axis, 4)
