"""Which measure follows the generalization gap: the table that the study's main question is answered from.

All coefficients are :func:`genbound.correlate`'s, of numbers that the cells hold; any of them can be had from these
with ``scipy.stats.kendalltau`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import kendalltau
from stored import Cell
from tabulate import tabulate

import genbound
from genbound.results.correlation import Correlations
from genbound.results.power import detectable_kendall
from genbound.results.resampling import Draws

RESAMPLES = 1999
FEWEST = 5  # cells that a coefficient is computed of
OURS = "hessian_distance"
SUBSETS: dict[str, Callable[[Cell], bool]] = {
    "all": lambda cell: True,
    "one training loss": lambda cell: cell["stopping"] == "loss" and cell["reached"],
    "fixed epochs": lambda cell: cell["stopping"] == "epochs",
}
LOGARITHMIC = {"pitas2017", "arora2018", "long2020", "gouk2021", "li2021", "neyshabur2018", "bartlett2017"}
TRIVIAL = "trivial"


def clean(cells: Sequence[Cell], task: str, subset: str = "all") -> list[Cell]:
    """The cells of a task without label noise that belong to a subset."""
    return [c for c in cells if c["task"] == task and c["group"] == "clean" and SUBSETS[subset](c)]


def table(cells: Sequence[Cell], kind: str = "loss") -> pd.DataFrame:
    """One row a cell, as :func:`genbound.correlate` takes it: gap, cluster, hyper-parameters and every measure.

    A measure has a column for the measurement samples (by its name) and one for the training samples. Runs of one
    method at one rate, whatever their seeds and their stopping, are a cluster.
    """
    rows = []
    for cell in cells:
        row = {
            "run": cell["name"], "data": cell["task"], "gap": cell["gap"][kind],
            "hyperparameters": cell["hyperparameters"],
            "cluster": f"{cell['hyperparameters']['method']} {cell['lr']:g}",
        }  # fmt: skip
        for where, suffix in (("measurement", ""), ("training", ", training samples")):
            for name, bound in cell["measures"][where]["bounds"].items():
                value = bound["log10" if name in LOGARITHMIC else "value"]
                row[f"{name}{suffix}"] = math.nan if value is None else value
        rows.append(row)
    frame = pd.DataFrame(rows).set_index("run")
    # Where no weight of the training samples enters, both columns are one. Some are of the training samples alone.
    both = [c for c in frame if c.endswith(", training samples") and c.partition(",")[0] in frame]
    same = [c for c in both if frame[c].equals(frame[c.partition(",")[0]])]
    frame = frame.drop(columns=same)
    frame.attrs["rivals"] = {
        name: {cell["name"]: cell["trivial"][name] for cell in cells} for name in cells[0]["trivial"]
    }
    return frame


def correlated(cells: Sequence[Cell], kind: str = "loss") -> Correlations | None:
    """Every measure and every trivial number against the gap; ``None`` for fewer than five cells."""
    if len(cells) < FEWEST:
        return None
    return genbound.correlate(table(cells, kind), kind, num_resamples=RESAMPLES)


def coefficient(row: dict, name: str = "kendall") -> str:
    """``0.59 [0.34, 0.80]``."""
    if math.isnan(row.get(name, math.nan)):
        return "/"
    return f"{row[name]:.2f} [{row[f'{name}_lower']:.2f}, {row[f'{name}_upper']:.2f}]"


def of_enough(row: dict) -> str:
    """A subset's coefficient, where enough of its networks have a value."""
    return coefficient(row) if row.get("num_runs", 0) >= FEWEST else "/"


def tracking(cells: Sequence[Cell], task: str) -> str | None:
    """The table: a line a measure, the largest size of Kendall's coefficient first."""
    found = {name: correlated(clean(cells, task, name)) for name in SUBSETS}
    whole, of_error = found["all"], correlated(clean(cells, task), "error")
    if whole is None or of_error is None:
        return None
    trivial = set(clean(cells, task)[0]["trivial"])
    others = {
        name: {} if other is None else {row["measure"]: row for row in other.table.to_dict("records")}
        for name, other in {**{n: found[n] for n in list(SUBSETS)[1:]}, "error": of_error}.items()
    }
    lines = []
    for row in sorted(whole.table.to_dict("records"), key=lambda row: -abs(row["kendall"])):
        name = row["measure"]
        lines.append([
            f"*{name}*" if name in trivial else f"`{name}`".replace(", training samples`", "`, training"),
            str(row["num_runs"]), coefficient(row), coefficient(row, "kendall given training loss"),
            *(of_enough(others[subset].get(name, {})) for subset in list(SUBSETS)[1:]),
            f"{row['granulated_kendall']:.2f}", f"{row['conditional_mutual_information']:.2f}",
            f"{row['robust_sign_error']:.2f}", coefficient(others["error"].get(name, {})),
        ])  # fmt: skip
    head = ["measure", "runs", "τ", "given the training loss", "at one training loss", "fixed epochs", "granulated τ",
            "CMI", "sign error", "τ, gap in the error"]  # fmt: skip
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def on_common(cells: Sequence[Cell], task: str) -> str | None:
    """Measures that some networks have no value of, ours and the rivals, on the networks that have all; or ``None``."""
    whole = correlated(clean(cells, task))
    if whole is None:
        return None
    counts = whole.table.set_index("measure")["num_runs"]
    scarce = [name for name in counts.index if counts[name] < counts.max()]
    frame = whole.points
    kept = frame[frame[scarce].notna().all(axis=1)]
    if not scarce or len(kept) < FEWEST:
        return None
    lines = []
    trivial = list(clean(cells, task)[0]["trivial"])
    for name in (OURS, *scarce, *trivial):
        tau = kendalltau(kept[name], kept["gap"]).statistic
        said = f"*{name}*" if name in trivial else f"`{name}`".replace(", training samples`", "`, training")
        lines.append([said, str(counts[name]), f"{tau:.2f}"])
    lines.sort(key=lambda line: -abs(float(line[2])))
    head = ["measure", "networks with a value", f"τ on the {len(kept)} networks that have all"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def power_of(cells: Sequence[Cell], task: str) -> str | None:
    """What the cells can show at all."""
    own = clean(cells, task)
    if len(own) < FEWEST:
        return None
    sizes = {subset: len(clean(cells, task, subset)) for subset in SUBSETS}
    seeds, clusters = len({cell["seed"] for cell in own}), table(own)["cluster"].nunique()
    losses = [cell["training"]["loss"] for cell in clean(cells, task, "one training loss")]
    span = f", where the training losses lie between {min(losses):.3f} and {max(losses):.3f}" if losses else ""
    missed = sum(cell["stopping"] == "loss" and not cell["reached"] for cell in own)
    shown = ", ".join(
        f"{detectable_kendall(size):.2f} from {size}{span if subset == 'one training loss' else ''}"
        for subset, size in sizes.items()
        if not math.isnan(detectable_kendall(size))
    )
    return (
        f"{len(own)} checkpoints of {seeds} seed{'s' * (seeds > 1)}, {clusters} clusters (a method at a rate). "
        f"Smallest τ that so many independent checkpoints show at 5 % with a chance of 80 %: {shown}. {missed} of "
        "those that were to reach the training loss did not, and are left out there."
    )


def difference(frame: pd.DataFrame, one: str, other: str) -> tuple[float, float, float]:
    """How much larger the size of one Kendall coefficient is than that of another: value and 95 % interval.

    Over the same resampled clusters, for the two are about the same networks.

    Args:
        frame: one row a network, as :func:`table` makes it.
        one, other: columns, or what costs nothing.
    """
    rivals = pd.DataFrame(frame.attrs["rivals"])
    both = frame.join(rivals)[[one, other, "gap", "cluster"]].dropna()
    x, y, gap = (both[name].to_numpy(float) for name in (one, other, "gap"))
    clusters = tuple(int(code) for code in pd.factorize(both["cluster"])[0])
    counts = Draws(len(both), RESAMPLES, 0, clusters).counts
    found = []
    for count in counts:
        index = np.repeat(np.arange(len(both)), count)
        first, second = (kendalltau(side[index], gap[index]).statistic for side in (x, y))
        found.append(abs(first) - abs(second))
    value = abs(kendalltau(x, gap).statistic) - abs(kendalltau(y, gap).statistic)
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(value), float(low), float(high)
