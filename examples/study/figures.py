"""The figures of the study, each drawn where there are cells for it."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pilot
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from measure import SHAPES
from noise_stability import ratio, sigmas_of, tested
from plan import METHODS
from stored import Cell
from tables import along, swept
from tasks import TASKS
from tracking import FEWEST, OURS, clean, correlated

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X<>dh"
ACROSS = 3  # panels side by side: more cannot be read on a page
TRIVIAL = ("training loss", "training error", "margin", "spread of the training losses", "distance", "steps",
           "gap on the measurement samples")  # fmt: skip


def figures(cells: Sequence[Cell], rows: list[Cell], out: Path) -> list[Path]:
    """Draw all of them."""
    tasks = [task for task in TASKS if len(clean(cells, task)) >= FEWEST]
    sweeps = [f"{task}:{group}" for task, group in swept(cells)]
    wanted = (
        ("study_tracking", [*tasks, *(pilot.TASKS if rows else ())], 6.0, draw_tracking),
        ("study_gap", tasks, 3.6, draw_gap),
        ("study_growth", tasks, 3.0, draw_growth),
        ("study_layers", [t for t in TASKS if any("stability" in c for c in clean(cells, t))], 3.0, draw_layers),
        ("study_radius", sweeps, 3.0, draw_radius),
    )
    written = []
    out.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        for name, panels, height, draw in wanted:
            if not panels:
                continue
            across = min(ACROSS, len(panels))
            down = -(-len(panels) // across)
            figure, axes = plt.subplots(
                down, across, figsize=(4.3 * across, height * down), layout="constrained", squeeze=False
            )
            for spare in axes.flat[len(panels) :]:
                spare.remove()
            for place, (axis, task) in enumerate(zip(axes.flat, panels, strict=False)):
                of_pilot = name == "study_tracking" and place >= len(tasks)
                axis.set_title(f"{pilot.TASKS[task]}, pilot" if of_pilot else TASKS[task.partition(":")[0]].title)
                draw(axis, rows if of_pilot else cells, task, of_pilot)
            figure.savefig(out / f"{name}.png", dpi=120, metadata={"Software": None})
            plt.close(figure)
            written.append(out / f"{name}.png")
    return written


def draw_tracking(axis, cells: Sequence[Cell], task: str, of_pilot: bool) -> None:
    """Kendall's coefficient of every measure, turned to be positive, with its interval; rivals in colour."""
    found = pilot.correlated(pilot.points(cells, task, "loss")) if of_pilot else correlated(clean(cells, task))
    best = sorted(found.table.to_dict("records"), key=lambda row: abs(row["kendall"]))
    for at, row in enumerate(best):
        sign = np.sign(row["kendall"]) or 1.0
        ends = sorted(sign * row[f"kendall_{side}"] for side in ("lower", "upper"))
        name = row["measure"]
        colour = COLOURS[3] if name in TRIVIAL else COLOURS[0] if name.startswith(OURS) else COLOURS[7]
        axis.hlines(at, *ends, color=colour, lw=1.5)
        axis.plot(abs(row["kendall"]), at, "o", color=colour, ms=4)
    signs = ["−" if row["kendall"] < 0 else "" for row in best]
    axis.set_yticks(
        range(len(best)), [s + r["measure"].replace("_", " ") for s, r in zip(signs, best, strict=True)], fontsize=6
    )
    axis.axvline(0, color="#999999", lw=0.8)
    axis.set(xlabel="τ with the gap, its sign turned to plus; 95 % interval", xlim=(-1, 1.02))


def draw_gap(axis, cells: Sequence[Cell], task: str, _: bool) -> None:
    """The gap over the Hessian measure; driven to one training loss filled, fixed epochs open."""
    own = clean(cells, task)
    for index, (method, _option, _strengths) in enumerate(METHODS):
        if not any(cell["method"] == method for cell in own):
            continue
        for stopping in ("loss", "epochs"):
            some = [c for c in own if (c["method"], c["stopping"]) == (method, stopping)]
            axis.plot(
                [c["measures"]["measurement"]["bounds"][OURS]["value"] for c in some],
                [c["gap"]["loss"] for c in some], MARKERS[index], color=COLOURS[index % len(COLOURS)], ms=5, ls="",
                mfc=None if stopping == "loss" else "none",
                label=method.replace("_", " ") if stopping == "loss" else None,
            )  # fmt: skip
    axis.set(xlabel="Hessian measure, measurement samples", ylabel="generalization gap (nats)", xscale="log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    below(axis, 4)


def draw_growth(axis, cells: Sequence[Cell], task: str, _: bool) -> None:
    """The Hessian measure over the number of samples that its maximum is taken over."""
    for cell in clean(cells, task):
        sizes, _low, high = zip(*cell["measures"]["measurement"]["growth"], strict=True)
        axis.plot(sizes, np.array(high) / high[-1], "-", color=COLOURS[0], lw=0.6, alpha=0.5)
    axis.set(xlabel="samples", ylabel="measure, relative to all", xscale="log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.xaxis.set_minor_formatter(NullFormatter())


def draw_layers(axis, cells: Sequence[Cell], task: str, _: bool) -> None:
    """The rise of the loss over its approximation for every shape of the covariances."""
    own = tested(cells, task)
    for index, shape in enumerate(SHAPES):
        for cell in own:
            rows = sigmas_of(cell, shape)
            ratios = [ratio(row, cell["stability"]["pairs"]) for row in rows]
            axis.errorbar(
                [row["sigma"] * (1 + 0.03 * (index - 1)) for row in rows],
                [value for value, _, _ in ratios],
                [high - value if math.isfinite(high) else 0 for value, _, high in ratios],
                fmt=MARKERS[index], color=COLOURS[index], ms=3, lw=0.7, label=shape if cell is own[0] else None,
            )  # fmt: skip
    axis.axhline(1, color="#999999", lw=0.8)
    axis.set(xlabel="σ (of equal layers)", ylabel="rise / ½Σσ_i² Tr H_i")
    below(axis, 3)


def draw_radius(axis, cells: Sequence[Cell], task: str, _: bool) -> None:
    """Hessian measure and gap along the radius of the constraint."""
    own = along(cells, *task.split(":"))
    x = [float(cell["strength"].rstrip("%")) for cell in own]
    other = axis.twinx()
    other.spines["right"].set_visible(True)
    axis.plot(x, [c["measures"]["measurement"]["bounds"][OURS]["value"] for c in own], "o", color=COLOURS[0], ms=4)
    other.plot(x, [c["gap"]["loss"] for c in own], "D", color=COLOURS[3], ms=4)
    said = (
        "radius, % of a layer's norm (head free)" if task.endswith(":radius") else "radius of every layer and the head"
    )
    axis.set(xlabel=said, xscale="log")
    axis.set_xticks(sorted(set(x)), [f"{value:g}" for value in sorted(set(x))])
    axis.xaxis.minorticks_off()
    axis.set_ylabel("Hessian measure", color=COLOURS[0])
    other.set_ylabel("generalization gap (nats)", color=COLOURS[3])


def below(axis, columns: int) -> None:
    """The legend under the axes, where no point is."""
    height = axis.figure.get_figheight() / axis.get_subplotspec().get_gridspec().nrows
    axis.legend(
        fontsize=6.5, ncols=columns, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.5 / height)
    )  # fmt: skip
