"""The talk's claims one by one: number, interval, and a verdict by a rule that is stated beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pilot
import tables
from measure import SHAPES, SIX
from noise_stability import LEVEL, interval, lacking, ratio, sigmas_of, tested
from scipy import stats
from stored import Cell
from tasks import TASKS
from tracking import FEWEST, OURS, RESAMPLES, clean, correlated, difference, table

from genbound.results.resampling import Draws

HOLDS, PART, NOT, UNTESTED = "holds", "holds in part", "does not hold", "cannot be tested here"
NEAR = 0.17  # of the rise over its approximation from 1: the root of the talk's larger relative RSS, 2.98 %
WEAK = 0.2  # a τ that is of no use
LISTED = 4  # networks whose intervals a line holds
SIXFOLD, SYMMETRIC, CORRELATED = 6.0, 6.43, 3.26


@dataclass(frozen=True)
class Found:
    """What the cells say to a claim.

    Attributes:
        claim: the claim.
        where: network and data, and which cells.
        number: with its interval.
        verdict: one of four.
    """

    claim: str
    where: str
    number: str
    verdict: str


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over the seeds; nothing is known from one."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def near_one(low: float, high: float) -> str:
    """Whether an interval lies within 17 % of 1, or outside; one that does neither is too wide to tell."""
    if 1 - NEAR <= low and high <= 1 + NEAR:
        return HOLDS
    return NOT if low > 1 + NEAR or high < 1 - NEAR else UNTESTED


def kendall_interval(columns: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """95 % intervals over resampled clusters, each drawn whole, of Kendall's τ and of the partial one.

    Args:
        columns: what is compared, the gap, and what the partial one is given ``[3, N]``.
        clusters: of each network.

    Returns:
        Lower and upper ends of the two ``[2, 2]``.
    """
    names = list(dict.fromkeys(clusters))
    counts = Draws(columns.shape[1], RESAMPLES, 0, tuple(names.index(name) for name in clusters)).counts
    found = [kendalls(np.repeat(columns, count, 1)) for count in counts]
    return np.nanquantile(found, [0.025, 0.975], axis=0).T


def kendalls(columns: np.ndarray) -> tuple[float, float]:
    """Kendall's τ of the first two of three columns ``[3, N]``, and the partial one given the third."""
    xy, xz, yz = (float(stats.kendalltau(columns[i], columns[j]).statistic) for i, j in ((0, 1), (0, 2), (1, 2)))
    rest = (1 - xz**2) * (1 - yz**2)
    return xy, (xy - xz * yz) / math.sqrt(rest) if rest > 0 else math.nan


def follows(whole: tuple[float, float], partial: tuple[float, float]) -> str:
    """Whether τ is above 0, and is so beyond what the training loss tells; or is weak at most."""
    if whole[0] > 0:
        return HOLDS if partial[0] > 0 else PART
    return NOT if whole[1] < WEAK else UNTESTED


def reaches(low: float, high: float, wanted: float, nothing: float = 0.0) -> str:
    """Whether an interval of an effect is above nothing, and may be as large as claimed."""
    if not math.isfinite(low):
        return UNTESTED
    if low > nothing:
        return HOLDS if high >= wanted else PART
    return NOT if high < wanted else UNTESTED


def stability(cells: Sequence[Cell], rows: list[Cell]) -> list[Found]:
    """Noise stability is its Hessian approximation."""
    claim, found = "noise stability is ½Σ⟨Σ_i, H_i⟩", []
    for task, title in pilot.TASKS.items():
        for grid in pilot.grids(rows, task):
            s = grid["sigmas"][-1]
            value, half = (s[key] / s["hessian_approximation"] for key in ("value", "sem"))
            low, high = value - 1.96 * half, value + 1.96 * half
            number = f"rise over approximation {value:.2f} [{low:.2f}, {high:.2f}] at σ = {s['sigma']:g}"
            found.append(Found(claim, f"{title}, pilot", number, near_one(low, high)))
    for task in TASKS:
        own = tested(cells, task)
        for shape in SHAPES if own else ():
            ratios = [
                ratio(sigmas_of(cell, shape)[-1], cell["stability"]["pairs"], 1 - (1 - LEVEL) / len(own))
                for cell in own
            ]
            why = [lacking(cell, shape) for cell in own]
            verdicts = [
                UNTESTED if reason else near_one(low, high) for reason, (_, low, high) in zip(why, ratios, strict=True)
            ]
            number = f"rise over approximation {each(ratios, why, verdicts)} at the largest σ"
            found.append(Found(claim, f"{TASKS[task].title}, σ_i: {shape}", number, of_each(verdicts)))
    return found


def each(ratios: Sequence[tuple[float, float, float]], why: Sequence[str], verdicts: Sequence[str]) -> str:
    """The interval of every network; of more than a line holds their range, and how many hold and do not."""
    if len(ratios) > LISTED and not any(why) and all(math.isfinite(low) for _, low, _ in ratios):
        values = [value for value, *_ in ratios]
        within, outside = verdicts.count(HOLDS), verdicts.count(NOT)
        counted = f"{within} within, {outside} outside, {len(values) - within - outside} open"
        return f"{min(values):.2f} … {max(values):.2f} in {len(values)} networks ({counted})"
    return "; ".join(
        interval(one) + (f" ({reason})" if reason else "") for reason, one in zip(why, ratios, strict=True)
    )


def of_each(verdicts: Sequence[str]) -> str:
    """One verdict from those of several networks."""
    if set(verdicts) == {HOLDS}:
        return HOLDS
    return UNTESTED if NOT not in verdicts else PART if HOLDS in verdicts else NOT


def following(cells: Sequence[Cell], rows: list[Cell]) -> list[Found]:
    """The measure goes along with the gap."""
    claim, found = "the Hessian measure follows the gap in the loss", []
    tried = [
        (f"{title}, pilot", None, pilot.points(rows, task, "loss"), f"{OURS} (held out)")
        for task, title in pilot.TASKS.items()
        if rows
    ]
    for task in TASKS:
        own = clean(cells, task)
        if len(own) >= FEWEST:
            tried.append((TASKS[task].title, own, None, OURS))
    for where, own, frame, name in tried:
        result = correlated(own) if own else pilot.correlated(frame)
        by_name = {row["measure"]: row for row in result.table.to_dict("records")}
        row, rival = by_name[name], by_name["training loss"]
        whole, partial = (
            (row[f"{key}_lower"], row[f"{key}_upper"]) for key in ("kendall", "kendall given training loss")
        )
        number = (
            f"τ {row['kendall']:.2f} [{whole[0]:.2f}, {whole[1]:.2f}], given the training loss "
            f"{row['kendall given training loss']:.2f} [{partial[0]:.2f}, {partial[1]:.2f}]; "
            f"the training loss alone {rival['kendall']:.2f}"
        )
        found.append(Found(claim, where, number, follows(whole, partial)))
        rivals = ("training loss", "gap on the measurement samples") if own else ("training loss",)
        for other in rivals:
            value, low, high = difference(table(own) if own else frame, name, other)
            beaten = HOLDS if low > 0 else NOT if high < 0 else UNTESTED
            number = f"its \\|τ\\| less that of the {other}: {value:.2f} [{low:.2f}, {high:.2f}]"
            if other != "training loss":
                some = own[0]["measures"]["measurement"]["num_samples"]
                number += f"; the gap of all {own[0]['measurement']['num']} of them, the measure of {some}"
            found.append(Found(f"… more closely than the {other} does", where, number, beaten))
    return found


def distances(cells: Sequence[Cell]) -> list[Found]:
    """Measure and gap rise together with the radius; the seeds of one radius are a cluster."""
    claim, found = "along the distance from the start the measure and the gap rise together", []
    for task, group in tables.swept(cells):
        own = tables.along(cells, task, group)
        sides = {
            "measure": [cell["measures"]["measurement"]["bounds"][OURS]["value"] for cell in own],
            "radius": [float(cell["strength"].rstrip("%")) for cell in own],
            "distance": [cell["trivial"]["distance"] for cell in own],
            "training loss": [cell["training"]["loss"] for cell in own],
        }
        gap, clusters = [cell["gap"]["loss"] for cell in own], [cell["strength"] for cell in own]
        columns = np.array([sides["measure"], gap, sides["training loss"]])
        (low, high), (least, most) = kendall_interval(columns, clusters)
        value, given = kendalls(columns)
        by_gap = {name: float(stats.kendalltau(side, gap).statistic) for name, side in sides.items()}
        number = (
            f"τ of the two {value:.2f} [{low:.2f}, {high:.2f}], given the training loss {given:.2f} [{least:.2f}, "
            f"{most:.2f}]; of the gap with the radius {by_gap['radius']:.2f}, with the distance "
            f"{by_gap['distance']:.2f}, with the training loss {by_gap['training loss']:.2f}; {len(own)} networks"
        )
        said = {"radius": "a share of each layer, head free", "distance": "one radius for layers and head"}[group]
        found.append(Found(claim, f"{TASKS[task].title}, {said}", number, follows((low, high), (least, most))))
    return found or [Found(claim, "no cells", "/", UNTESTED)]


def smaller(cells: Sequence[Cell], rows: list[Cell]) -> list[Found]:
    """Orders of magnitude below the other six."""
    claim, found = "the measure is orders of magnitude below the six others", []
    for row in rows:
        if row["group"] == "bounds":
            bounds = row["results"]["bounds"]
            logs = [bounds[name]["log10"] for name in SIX if bounds.get(name, {}).get("log10") is not None]
            where = f"{pilot.TASKS[row['task']]}, pilot, one network"
            if not logs:
                found.append(Found(claim, where, "none of the six exists for attention", UNTESTED))
                continue
            apart = min(logs) - bounds[OURS]["log10"]
            found.append(Found(claim, where, f"{apart:.1f} decades below the smallest", HOLDS if apart > 1 else NOT))
    for task in TASKS:
        apart, counts = [], []
        for cell in clean(cells, task):
            bounds = [cell["measures"][where]["bounds"] for where in ("training", "measurement")]
            there = [(name, row[name]["log10"]) for row in bounds for name in SIX if name in row]
            there = [(name, log10) for name, log10 in there if log10 is not None]
            logs = [log10 for _, log10 in there]
            ours = bounds[1][OURS]["log10"]
            if logs and ours is not None:
                apart.append(min(logs) - ours)
                counts.append(len(dict(there)))
        if apart:
            span = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(min(counts))
            number = (
                f"{min(apart):.1f} to {max(apart):.1f} decades below the smallest of those that have a value "
                f"({span} of {len(SIX)}), {len(apart)} networks"
            )
            found.append(Found(claim, TASKS[task].title, number, HOLDS if min(apart) > 1 else PART))
        elif clean(cells, task):
            found.append(Found(claim, TASKS[task].title, "none of the six exists for attention", UNTESTED))
    return found


def noisy(cells: Sequence[Cell], rows: list[Cell]) -> list[Found]:
    """Six-fold reduction, and the two gains in accuracy."""
    found = []
    for kind, wanted in (("symmetric", SYMMETRIC), ("correlated", CORRELATED)):
        for task, title in pilot.TASKS.items() if rows else ():
            where = f"{title}, {kind} 40, pilot"
            logs = pilot.reductions(rows, task, f"{kind}40", "both")
            found.append(_reduction(f"{where}, C of each network's own", logs))
            gained = [100 * gain for gain in pilot.gains(rows, task, f"{kind}40", "both")]
            found.append(_gain(kind, wanted, where, gained))
        for task in TASKS:
            for rate in (20, 40, 60):
                found += _against_plain(cells, task, kind, rate, wanted)
                found += _against_others(cells, task, f"{kind}{rate}")
    return sorted(found, key=lambda one: one.claim)


def _against_plain(cells: Sequence[Cell], task: str, kind: str, rate: int, wanted: float) -> list[Found]:
    found = []
    for against, said in (("loss", "plain to the fit"), ("best", "plain at its best stop")):
        compared = (cells, task, f"{kind}{rate}", "both", "epochs", "plain", against)
        gained, where = tables.gains(*compared), f"{TASKS[task].title}, {kind} {rate}, over {said}"
        if len(gained) > 1:
            found.append(_gain(kind, wanted, where, [100 * gain for gain in gained]))
            found.append(_reduction(where, tables.reductions(*compared)))
    return found


def _against_others(cells: Sequence[Cell], task: str, group: str) -> list[Found]:
    """Whether the algorithm is more accurate than the best, on average, of other methods, and of its own two parts."""
    found = []
    for said, others in (("the best other method", tables.RIVALS), ("the better of its parts alone", tables.PARTS)):
        compared = {
            (other, stopping): tables.gains(cells, task, group, "both", "epochs", other, stopping)
            for other, stopping in others
        }
        compared = {names: gained for names, gained in compared.items() if len(gained) > 1}
        if not compared:
            continue
        (best, _), gained = min(compared.items(), key=lambda item: np.mean(item[1]))
        low, high = t_interval([100 * gain for gain in gained])
        size = f"{100 * np.mean(gained):+.1f} points [{low:+.1f}, {high:+.1f}]"
        number = f"{size} over {best.replace('_', ' ')}, {len(gained)} seeds"
        beaten = HOLDS if low > 0 else NOT if high < 0 else UNTESTED
        where = f"{TASKS[task].title}, {group[:-2]} {group[-2:]}"
        found.append(Found(f"under noise the algorithm is above {said}", where, number, beaten))
    return found


def _reduction(where: str, logs: Sequence[float]) -> Found:
    low, high = (math.exp(side) for side in t_interval(logs))
    interval = f" [{low:.2g}, {high:.2g}], {len(logs)} seeds" if len(logs) > 1 else ", one seed"
    verdict = UNTESTED if len(logs) < 2 else reaches(low, high, SIXFOLD, nothing=1.0)
    return Found(
        "the algorithm makes the measure six times smaller", where, f"{math.exp(np.mean(logs)):.2g} times{interval}",
        verdict,
    )  # fmt: skip


def _gain(kind: str, wanted: float, where: str, gained: Sequence[float]) -> Found:
    low, high = t_interval(gained)
    number = f"{np.mean(gained):+.1f} points [{low:+.1f}, {high:+.1f}], {len(gained)} seeds"
    return Found(f"+{wanted} points under {kind} noise", where, number, reaches(low, high, wanted))


def architectures(cells: Sequence[Cell]) -> list[Found]:
    """What no cell is there of; the rows of those that there are stand with the other networks'."""
    there = {cell["task"] for cell in cells}
    left = [title for task, title in SMALL.items() if task not in there]
    absent = [
        ("networks pretrained as the talk's: ImageNet's ResNet-50, BERT-base, RoBERTa-base, ViT-Base", "no weights"),
        ("the talk's CIFAR-100", "no data"),
    ]
    if left:
        absent.insert(0, (f"the same for {', '.join(left)}", "no cells"))
    return [Found(claim, where, "/", UNTESTED) for claim, where in absent]


SMALL = {"resnet50": "a ResNet-50", "vit5": "a vision transformer", "roberta": "a RoBERTa", "gpt2": "a GPT-2"}


def all_claims(cells: Sequence[Cell], rows: list[Cell]) -> list[Found]:
    """Everything that the cells say, claim by claim."""
    of_both: tuple[Callable, ...] = (stability, following)
    found = [one for group in of_both for one in group(cells, rows)]
    return [*found, *distances(cells), *smaller(cells, rows), *noisy(cells, rows), *architectures(cells)]


def as_table(found: Sequence[Found]) -> str:
    """One line each."""
    lines = [[one.claim, one.where, one.number, f"**{one.verdict}**"] for one in found]
    return pilot.markdown(lines, ["claim", "where", "number, 95 % interval", "verdict"])
