"""The tables of the protocol's cells; ``None`` where nothing was run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from measure import BY_MARGIN, LEVEL, RANGE, SIX, tolerance
from pilot import markdown, mean_and_sem, size
from plan import SWEEPS, chosen
from scipy.stats import kendalltau
from stored import Cell
from tasks import TASKS
from tracking import FEWEST, OURS, clean

from genbound.bounds.clopper1934heldout import held_out_limit

RIVALS = (  # under label noise, what is no part of the algorithm
    ("plain", "loss"), ("plain", "best"), ("label_smoothing", "best"), ("mixup", "best"), ("sam", "best"),
    ("l2sp", "best"), ("generalised", "best"),
)  # fmt: skip
PARTS = (("constraint", "epochs"), ("consistent", "epochs"))  # of the algorithm
GROUPS = ("clean", *SWEEPS, *(f"{kind}{rate}" for kind in ("symmetric", "correlated") for rate in (20, 40, 60)))


def group_of(cell: Cell) -> str:
    """How the plan calls a cell's group."""
    return f"{cell['noise']}{round(100 * cell['rate'])}" if cell["noise"] else cell["group"]


def progress(cells: Sequence[Cell]) -> str:
    """How many of the planned cells are there, and how large the three sets are."""
    lines = []
    for name, task in TASKS.items():
        own = [cell for cell in cells if cell["task"] == name]
        sizes = "/"
        if own:
            sizes = " / ".join(str(own[0][part]["num"]) for part in ("measurement", "test"))
            sizes = f"{max(cell['n'] for cell in own)} / {sizes}"
        counts = [
            f"{sum(group_of(cell) == group for cell in own)} of {len(chosen(f'{name}:{group}'))}" for group in GROUPS
        ]
        together = [_sum(counts[1 : 1 + len(SWEEPS)]), _sum(counts[1 + len(SWEEPS) :])]
        lines.append([task.title, f"`{name}`", sizes, counts[0], *together])
    return markdown(
        lines,
        ["network, data", "task", "training / measurement / test", "clean", "sweeps", "label noise"],
    )


def _sum(counts: Sequence[str]) -> str:
    """``3 of 7`` and ``2 of 5`` are ``5 of 12``."""
    pairs = [count.split(" of ") for count in counts]
    return f"{sum(int(done) for done, _ in pairs)} of {sum(int(planned) for _, planned in pairs)}"


def measuring(cells: Sequence[Cell]) -> str | None:
    """What differs between the tasks in how they are trained and measured, of those that have cells."""
    there = [task for name, task in TASKS.items() if any(cell["task"] == name for cell in cells)]
    lines = [
        [
            f"`{task.name}`", str(task.measured), f"{100 * tolerance(task.name):g} %", _pairs_of(cells, task.name),
            task.precision, f"{task.stop_loss:g}", str(task.epochs), " and ".join(f"{lr:g}" for lr in task.lrs),
        ]
        for task in there
    ]  # fmt: skip
    head = ["task", "samples measured, each set", "largest form known to", "pairs of noise", "trained in",
            "one training loss", "fixed epochs", "rates"]  # fmt: skip
    return markdown(lines, head) if lines else None


def _pairs_of(cells: Sequence[Cell], task: str) -> str:
    """How many antithetic pairs the noise of its networks was drawn in."""
    return " or ".join(
        str(n) for n in sorted({c["stability"]["pairs"] for c in clean(cells, task) if "stability" in c})
    )


def recipes(cells: Sequence[Cell], task: str) -> str | None:
    """What every method comes to on clean labels."""
    found = defaultdict(list)
    for cell in clean(cells, task):
        found[cell["hyperparameters"]["method"]].append(cell)
    lines = [
        [
            method.replace("_", " "), str(len(own)),
            " … ".join(f"{100 * (1 - f(c['test']['error'] for c in own)):.1f}" for f in (max, min)),
            *(" … ".join(f"{f(get(c) for c in own):.3f}" for f in (min, max)) for get in (
                lambda c: c["training"]["loss"], lambda c: c["gap"]["loss"],
                lambda c: c["measures"]["measurement"]["bounds"][OURS]["value"])),
        ]
        for method, own in found.items()
    ]  # fmt: skip
    head = ["method", "checkpoints", "test accuracy %", "training loss", "gap in the loss", "Hessian measure"]
    return markdown(lines, head) if lines else None


def grown(cells: Sequence[Cell], task: str) -> str | None:
    """How the Hessian measure grows with the number of samples, and whether the order of the networks stays."""
    own = clean(cells, task)
    if not own:
        return None
    curves = [cell["measures"]["measurement"]["growth"] for cell in own]
    last = np.array([curve[-1][2] for curve in curves])
    lines = []
    for k, (num, _, _) in enumerate(curves[0]):
        upper = np.array([curve[k][2] for curve in curves])
        shares = np.array([curve[k][1] for curve in curves]) / last, upper / last
        order = kendalltau(upper, last).statistic if len(own) > 2 else math.nan
        said = "/" if math.isnan(order) else f"{order:.2f}"
        lines.append([str(num), f"{np.median(shares[0]):.2f} … {np.median(shares[1]):.2f}", said])
    return markdown(lines, ["samples", "share of the measure over all of them (median)", "τ with it"])


def talks(cells: Sequence[Cell]) -> str | None:
    """The talk's table of sizes, the six others and our measure, with a column for every network and data set.

    A place has the median over the networks in which the bound has a value, and how many they are where not all;
    ``/`` where it does not exist for such networks.
    """
    columns = [task for task in TASKS if clean(cells, task)]
    lines = [[f"`{name}`", *(_median_size(clean(cells, task), name) for task in columns)] for name in (*SIX, OURS)]
    return markdown(lines, ["bound", *(TASKS[task].title for task in columns)]) if columns else None


def _median_size(own: Sequence[Cell], name: str) -> str:
    """From measurement samples; from training samples what divides by their margin."""
    found = [cell["measures"]["training" if name in BY_MARGIN else "measurement"]["bounds"] for cell in own]
    rows = [bounds[name] for bounds in found if name in bounds]
    there = [row["log10"] for row in rows if row["log10"] is not None]
    if not there:
        return f"none of {len(rows)}" if rows else "/"
    middle = float(np.median(there))
    said = size({"log10": middle, "value": 10**middle if abs(middle) < 300 else None})
    return said if len(there) == len(own) else f"{said} ({len(there)} of {len(own)})"


def sizes(cells: Sequence[Cell], task: str) -> str | None:
    """Our measure and the others on the measurement samples: how many networks have a value, median and range.

    What only the training samples were measured for stands at the end and says so.
    """
    own = clean(cells, task)
    if not own:
        return None
    names = [(name, "measurement") for name in own[0]["measures"]["measurement"]["bounds"]]
    known = dict(names)
    names += [(name, "training") for name in own[0]["measures"]["training"]["bounds"] if name not in known]
    lines = []
    for name, where in names:
        rows = [cell["measures"][where]["bounds"][name] for cell in own]
        there = [row for row in rows if row["value"] is not None or row["log10"] is not None]
        logs = [row["log10"] if row["log10"] is not None else math.log10(row["value"]) for row in there
                if row["log10"] is not None or row["value"] > 0]  # fmt: skip
        spread = [f"{np.median(logs):.1f}", f"{min(logs):.1f} … {max(logs):.1f}"] if logs else ["/", "/"]
        if len(logs) < len(there):
            spread[1] += f"; {len(there) - len(logs)} not positive"
        said = f"`{name}`" + (", training" if where == "training" else "")
        lines.append([said, f"{len(there)} of {len(own)}", *spread])
    head = ["measure", "networks with a value", "log10, median", "log10, range"]
    return f"{markdown(lines, head)}\n\nC = {RANGE:g} in all rows."


CERTIFIED = {
    "pac_bayes_certificate": "PAC-Bayes, training samples (noisy network)",
    "compression_certificate": "compression, training samples (quantised network)",
}


def certified(cells: Sequence[Cell], task: str) -> str | None:
    """The errors that are certified of every network beside its test error."""
    own = clean(cells, task)
    if len(own) < FEWEST:
        return None
    test = np.array([cell["test"]["error"] for cell in own])
    held_out = np.array([held_out_certificate(cell) for cell in own])
    rows = {"measurement samples (Clopper–Pearson)": held_out}
    for name, said in CERTIFIED.items():
        if all(cell.get("certificates", {}).get(name, {}).get("value") is not None for cell in own):
            rows[said] = np.array([cell["certificates"][name]["value"] for cell in own])
    lines = [
        [said, _span(limits), f"{100 * float((limits - test).mean()):.1f}", f"{int((limits < test).sum())}",
         f"{kendalltau(limits, test).statistic:.2f}"]
        for said, limits in rows.items()
    ]  # fmt: skip
    ours = [cell["measures"]["measurement"]["bounds"][OURS]["value"] for cell in own]
    lines.append(["*the Hessian measure, no certificate*", "/", "/", "/", f"{kendalltau(ours, test).statistic:.2f}"])
    head = ["certified from", "certified error %", "points above the test error, mean", f"of {len(own)} below it",
            "τ with the test error"]  # fmt: skip
    other = (
        " What the training samples certify is the error of the noisy and of the quantised network; it stands beside "
        "the test error of the network itself."
    )
    return f"{markdown(lines, head)}\n\nTest error: {_span(test)} %.{other if len(rows) > 1 else ''}"


def held_out_certificate(cell: Cell) -> float:
    """Upper limit of the error at 95 %, from the measurement samples, which neither training nor a choice has seen."""
    error, num = cell["measurement"]["error"], cell["measurement"]["num"]
    return held_out_limit(error, round(error * num), num, math.log(1 - LEVEL))


def _span(shares: Sequence[float]) -> str:
    return " … ".join(f"{100 * f(shares):.1f}" for f in (min, max))


def along(cells: Sequence[Cell], task: str, group: str) -> list[Cell]:
    """The cells of a sweep of the constraint's radius."""
    return [cell for cell in cells if cell["task"] == task and cell["group"] == group]


def swept(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """The sweeps that have cells enough to look along them: task and group."""
    return [(task, group) for task in TASKS for group in SWEEPS if len(along(cells, task, group)) >= FEWEST]


def radius(cells: Sequence[Cell], task: str, group: str) -> str | None:
    """Hessian measure and gap along the radius of the constraint."""
    found = defaultdict(list)
    for cell in along(cells, task, group):
        found[cell["strength"]].append(cell)
    lines = [
        [
            strength, str(len(group)), *(_mean([get(cell) for cell in group]) for get in (
                lambda c: c["trivial"]["distance"], lambda c: c["measures"]["measurement"]["bounds"][OURS]["value"],
                lambda c: c["training"]["loss"], lambda c: c["gap"]["loss"], lambda c: c["gap"]["error"])),
        ]
        for strength, group in sorted(found.items(), key=lambda item: float(item[0].rstrip("%")))
    ]  # fmt: skip
    head = ["radius", "seeds", "distance", "Hessian measure", "training loss", "gap in the loss", "gap in the error"]
    return markdown(lines, head) if lines else None


def _mean(values: Sequence[float]) -> str:
    return mean_and_sem(list(values), percent=False).partition(" (")[0]


def noise(cells: Sequence[Cell], task: str, group: str) -> str | None:
    """Accuracy under label noise, by method, against plain fine-tuning to the fit and at its best early stop."""
    own = [cell for cell in cells if cell["task"] == task and cell["noise"] and group_of(cell) == group]
    found = defaultdict(list)
    for cell in own:
        found[cell["method"], cell["stopping"]].append(cell)
    names = {"loss": "to the fit", "best": "best early stop", "epochs": "all epochs"}
    lines = []
    for (method, stopping), rows in found.items():
        gained = [gains(cells, task, group, method, stopping, "plain", against) for against in ("loss", "best")]
        lines.append([
            method.replace("_", " "), names[stopping], " or ".join(str(n) for n in sorted({c["n"] for c in rows})),
            mean_and_sem([1 - cell["test"]["error"] for cell in rows]),
            *(mean_and_sem(gain) if gain and method != "plain" else "" for gain in gained),
            mean_and_sem([1 - cell["training"]["error"] for cell in rows]),
            mean_and_sem([cell["measures"]["measurement"]["bounds"][OURS]["value"] for cell in rows], percent=False),
            mean_and_sem([cell["measurement"]["above_range"] / cell["measurement"]["num"] for cell in rows]),
        ])  # fmt: skip
    head = ["method", "stopped", "n", "test accuracy %", "gain over plain, fitted", "over plain, early stop",
            "fit of noisy labels %", "Hessian measure", "losses above C %"]  # fmt: skip
    return markdown(lines, head) if lines else None


def gains(
    cells: Sequence[Cell], task: str, group: str, method: str, stopping: str, other: str, against: str
) -> list[float]:
    """Test accuracy less that of another method, stopped as ``against`` says, of the same seed."""
    pairs = _pairs(cells, task, group, method, stopping, other, against)
    return [rival["test"]["error"] - own["test"]["error"] for own, rival in pairs]


def reductions(
    cells: Sequence[Cell], task: str, group: str, method: str, stopping: str, other: str, against: str
) -> list[float]:
    """Logarithms of how many times smaller than another method's the Hessian measure is, seed by seed, at one n."""
    return [
        math.log(_at_one_n(rival)) - math.log(_at_one_n(own))
        for own, rival in _pairs(cells, task, group, method, stopping, other, against)
    ]


def _at_one_n(cell: Cell) -> float:
    """The Hessian measure times the root of n, which runs that hold samples out have less of."""
    return cell["measures"]["measurement"]["bounds"][OURS]["value"] * math.sqrt(cell["n"])


def _pairs(
    cells: Sequence[Cell], task: str, group: str, method: str, stopping: str, other: str, against: str
) -> list[tuple[Cell, Cell]]:
    """The runs of a method, each with the other's of the same seed."""
    own = [cell for cell in cells if cell["task"] == task and cell["noise"] and group_of(cell) == group]
    found = {(c["method"], c["stopping"], c["seed"]): c for c in own}
    return [
        (found[method, stopping, seed], found[other, against, seed])
        for seed in sorted({c["seed"] for c in own})
        if (method, stopping, seed) in found and (other, against, seed) in found
    ]
