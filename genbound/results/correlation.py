"""Which measure tracks the generalization gap: coefficients with intervals, and what may be chance.

Each data set has coefficients of its own.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genbound.errors import GenboundError
from genbound.files import write_atomically
from genbound.formatting import few
from genbound.results.cells import markdown_table, write_csv
from genbound.results.common_range import on_common_range
from genbound.results.gap import UNITS, measured_gap
from genbound.results.hyperparameters import Pairs
from genbound.results.likeness import refuse_unlike, unlike
from genbound.results.power import POWER, detectable_kendall
from genbound.results.rank_statistics import STATISTICS, partial_kendall
from genbound.results.resampling import Draws, bootstrap_intervals, partial_interval, permutation_p_values
from genbound.results.results import Results
from genbound.results.rivals import GIVEN, RIVALS
from genbound.results.runs import as_results, refuse_twice, stated_of

FEWEST = 3
CHANCE = 0.05
# Coefficients that control for hyper-parameters, there where runs state them; the last one comes with its worst
# environment.
CONTROLLED = ("granulated_kendall", "conditional_mutual_information", "robust_sign_error")


def points(
    runs: Iterable[Results | str | Path],
    gap: str = "loss",
    *,
    hyperparameters: Mapping[str, Mapping[str, Any]] | None = None,
    clusters: str | None = None,
    allow_mixed: bool = False,
) -> pd.DataFrame:
    """One row a run: ``data`` (its data set), ``gap``, ``hyperparameters`` (a dict), then one column a measure.

    With ``clusters`` there is a column ``cluster``, too.

    A measure's value is ``NaN`` where it does not exist; where it overflows in any run, its column holds base-10
    logarithms and is named ``log10 NAME``.

    Args:
        runs: results, or where they are stored.
        gap: ``loss`` or ``error``.
        hyperparameters: run (its directory, or its name in the table) -> its hyper-parameters, beside those that the
            run itself states.
        clusters: the hyper-parameter, such as the seed, whose equal values make a cluster: runs that are not
            independent, and that the bootstrap draws together. It is then no hyper-parameter.
        allow_mixed: take runs of one data set that were not measured alike. Without it bounds of runs with different
            observed C are put on the largest one of the data set.
    """
    if gap not in UNITS:
        raise GenboundError(f"gap {gap!r} is unknown: use {' or '.join(UNITS)}")
    named = as_results(runs)
    refuse_twice(named)
    of_run, groups = stated_of(named, hyperparameters or {}), _by_data_set(named)
    if not allow_mixed:
        for group in groups.values():
            refuse_unlike(group, {k: v for k, v in unlike(group).items() if k != "layer partition"})
        groups, remarks = _rescaled(groups)
    else:
        remarks = []
    found, rows = {}, []
    for title, group in groups.items():
        for name, results in group.items():
            value = measured_gap(results, gap)
            if value is None:
                raise GenboundError(f"{name} has no generalization gap in the {gap}: evaluate it with --test-data")
            stated = of_run[name]
            row = {"run": name, "data": title, "gap": value, "hyperparameters": stated}
            if clusters is not None:
                if clusters not in stated:
                    raise GenboundError(f"{name} states no hyper-parameter {clusters!r}, which clusters runs")
                row["cluster"] = str(stated.pop(clusters))
            rows.append(row)
            found[name] = {b: r for b, r in results.bounds.items() if r["log10"] is not None or r["value"] == 0}
    frame = pd.DataFrame(rows).set_index("run")
    for bound in dict.fromkeys(b for row in found.values() for b in row):
        entries = [row.get(bound) for row in found.values()]
        overflow = any(entry is not None and entry["value"] is None for entry in entries)
        column, side = (f"log10 {bound}", "log10") if overflow else (bound, "value")
        frame[column] = [math.nan if e is None or e[side] is None else float(e[side]) for e in entries]
    frame.attrs["remarks"] = remarks
    frame.attrs["rivals"] = {
        rival: {name: of(results) for group in groups.values() for name, results in group.items()}
        for rival, of in RIVALS.items()
    }
    return frame


def _rescaled(groups: Mapping[str, Mapping[str, Results]]) -> tuple[dict[str, dict[str, Results]], list[str]]:
    """The runs of each data set on one observed C, and a sentence for each in which that changed something."""
    found = {title: on_common_range(group) for title, group in groups.items()}
    remarks = [f"{title}: {sentence}" for title, (_, sentence) in found.items() if sentence]
    return {title: group for title, (group, _) in found.items()}, remarks


def _by_data_set(runs: Mapping[str, Results]) -> dict[str, dict[str, Results]]:
    """Name of the data set -> name of the run -> results; the name has a digest where two have the same SPEC."""
    groups: dict[str, dict[str, Results]] = {}
    for name, results in runs.items():
        key = results.data.get("sha256") or results.data.get("spec") or "no data"
        groups.setdefault(key, {})[name] = results
    specs = {key: next(iter(group.values())).data.get("spec") or "data in memory" for key, group in groups.items()}
    if len(set(specs.values())) < len(specs):
        specs = {key: f"{spec} ({key[:8]})" for key, spec in specs.items()}
    return {specs[key]: group for key, group in groups.items()}


def correlate(
    runs: Iterable[Results | str | Path] | pd.DataFrame,
    gap: str = "loss",
    *,
    measures: Sequence[str] | None = None,
    common: bool = False,
    num_resamples: int = 9999,
    seed: int = 0,
    **options: Any,
) -> Correlations:
    """Correlate every measure with the generalization gap, in each data set by itself.

    Args:
        runs: results, where they are stored, or the table that :func:`points` makes.
        gap: ``loss`` or ``error``.
        measures: bounds to correlate; ``None`` for all.
        common: take only the runs in which all of these have a value, so that all rows are about the same runs.
        num_resamples: bootstrap resamples, and permutations unless all of them are fewer.
        seed: of both.
        options: those of :func:`points`.

    Raises:
        GenboundError: a data set has fewer than three runs, a run has no gap, or runs were not measured alike.
    """
    table = runs if isinstance(runs, pd.DataFrame) else points(runs, gap, **options)
    rivals = table.attrs.get("rivals", {})
    if num_resamples < 1:
        raise GenboundError(f"num_resamples {num_resamples} must be positive")
    names = [c for c in table.columns if c not in ("data", "gap", "hyperparameters", "cluster")]
    if measures is not None:
        unknown = [m for m in measures if m not in names and f"log10 {m}" not in names]
        if unknown:
            raise GenboundError(f"measure {unknown[0]!r} is in none of the runs; there are {', '.join(names)}")
        names = [n for n in names if n.removeprefix("log10 ") in measures or n in measures]
    rows, warnings = [], list(table.attrs.get("remarks", []))
    table = table.assign(**{rival: pd.Series(values, dtype=float) for rival, values in rivals.items()})
    for data, group in table.groupby("data", sort=False):
        if common:
            kept = group[names].notna().all(axis=1)
            warnings += [] if kept.all() else [f"{data}: {int(kept.sum())} of {len(group)} runs have all measures."]
            group = group[kept]
        if len(group) < FEWEST:
            raise GenboundError(
                f"{data} has {len(group)} run{'s' * (len(group) > 1)}: a correlation needs {FEWEST} at least, "
                "and many to mean something"
            )
        shared = _Shared(group, num_resamples, seed)
        given = [rival for rival in GIVEN if rival in rivals]
        found = [row for name in names if (row := _row(data, name, shared, given)) is not None]
        rows += found
        rows += [row for name in rivals if (row := _row(data, name, shared, given)) is not None]
        warnings += [*_without(data, group, names, found), *_warnings(data, found, len(group))]
    return Correlations(pd.DataFrame(rows), table, gap, tuple(warnings))


class _Shared:
    """What the measures of one data set share where they have a value in the same runs.

    Args:
        group: one row a run.
        num_resamples: bootstrap resamples, and permutations unless all of them are fewer.
        seed: of both.
    """

    def __init__(self, group: pd.DataFrame, num_resamples: int, seed: int) -> None:
        self.group, self._num_resamples, self._seed = group, num_resamples, seed
        self._draws: dict[bytes, Draws] = {}
        self._pairs: dict[bytes, Pairs] = {}

    def draws(self, present: np.ndarray) -> Draws:
        """One stream for each set of runs, so that another set of measures changes no other number."""
        key = present.tobytes()
        if key not in self._draws:
            clusters = None
            if "cluster" in self.group:
                clusters = tuple(int(code) for code in pd.factorize(self.group["cluster"][present])[0])
            self._draws = {key: Draws(int(present.sum()), self._num_resamples, self._seed, clusters)}
        return self._draws[key]

    def pairs(self, present: np.ndarray) -> Pairs:
        """The pairs among the runs that are present."""
        if present.tobytes() not in self._pairs:
            group = self.group[present]
            settings = [s if isinstance(s, Mapping) else {} for s in group.get("hyperparameters", [{}] * len(group))]
            self._pairs = {present.tobytes(): Pairs(settings, group["gap"].to_numpy(float))}
        return self._pairs[present.tobytes()]


def _row(data: str, name: str, shared: _Shared, rivals: Sequence[str]) -> dict[str, Any] | None:
    present = np.isfinite(shared.group[[name, "gap"]].to_numpy(float)).all(axis=1)
    group = shared.group[present]
    if len(group) < FEWEST or group[name].nunique() < 2 or group["gap"].nunique() < 2:
        return None
    x, y = group[name].to_numpy(float), group["gap"].to_numpy(float)
    row: dict[str, Any] = {"data": data, "measure": name, "num_runs": len(group)}
    draws = shared.draws(present)
    row["num_clusters"] = draws.num_drawn
    row["detectable_kendall"] = detectable_kendall(len(group))
    intervals, p_values = bootstrap_intervals(x, y, draws), permutation_p_values(x, y, draws)
    for title, statistic in STATISTICS.items():
        low, high = intervals[title]
        row |= {title: float(statistic(x, y)), f"{title}_lower": low, f"{title}_upper": high}
        row[f"{title}_p"] = p_values[title]
    for rival in rivals:
        given = group[rival].to_numpy(float)
        known = np.isfinite(given).all() and rival != name
        title = f"kendall given {rival}"
        low, high = partial_interval(x, y, given, draws) if known else (math.nan, math.nan)
        row[title] = partial_kendall(x, y, given) if known else math.nan
        row |= {f"{title}_lower": low, f"{title}_upper": high}
    pairs = shared.pairs(present)
    if pairs.names:
        row["granulated_kendall"], parts = pairs.granulated_kendall(x)
        row |= {f"granulated_kendall {name}": value for name, value in parts.items()}
        row["conditional_mutual_information"] = pairs.conditional_mutual_information(x)
        row["robust_sign_error"], row["worst_environment"] = pairs.robust_sign_error(x)
    return row


def _without(data: str, group: pd.DataFrame, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which measures have no coefficient, and why."""
    if group["gap"].nunique() < 2:
        return [f"{data}: the gap is the same in all runs, so that nothing goes along with it."]
    lost = [name for name in names if name not in {row["measure"] for row in rows}]
    why = f"a coefficient needs {FEWEST} runs, values that differ, and gaps that do"
    return [f"{data}: no line for {few(lost)}: {why}."] if lost else []


def _warnings(data: str, rows: Sequence[Mapping[str, Any]], num_runs: int) -> list[str]:
    """What the best of many measures is worth: with m of them, the smallest p-value p is reached with 1 - (1 - p)^m."""
    if not rows:
        return []
    best = min(rows, key=lambda row: (row["kendall_p"], -abs(row["kendall"])))
    chance = 1 - (1 - min(1.0, best["kendall_p"])) ** len(rows)
    if chance <= CHANCE:
        return []
    return [
        f"{data}: with {num_runs} checkpoints, that the best of {len(rows)} measures ({best['measure']}, "
        f"Kendall {best['kendall']:.2f}) does so well is a matter of chance with probability {chance:.0%} if none of "
        "them says anything: measure more checkpoints."
    ]


def read_hyperparameters(path: str | Path) -> dict[str, dict[str, Any]]:
    """Run -> hyper-parameters, from a CSV file with the column ``run`` and one more for each."""
    try:
        table = pd.read_csv(path, converters={"run": str})  # 01 is a name, and no number
    except (OSError, ValueError) as error:
        raise GenboundError(f"{path} cannot be read as CSV: {error}") from error
    if "run" not in table or len(table.columns) < 2:
        raise GenboundError(
            f"{path} must have the column run and one for each hyper-parameter; it has {', '.join(table.columns)}"
        )
    if table["run"].duplicated().any():
        raise GenboundError(f"{path} has two rows of run {table['run'][table['run'].duplicated()].iloc[0]}: give one")
    rows = table.to_dict("records")
    return {row.pop("run"): {name: value for name, value in row.items() if not pd.isna(value)} for row in rows}


def _power(group: pd.DataFrame) -> str:
    """What so many runs can show at all, as a sentence."""
    runs, least = int(group["num_runs"].max()), float(group["detectable_kendall"].min())
    clusters = int(group["num_clusters"].max())
    drawn = "" if clusters == runs else f" Intervals: {clusters} clusters are drawn, with all of their runs."
    if clusters == 1:
        drawn = " All runs are one cluster, which says nothing of how sure a coefficient is: there are no intervals."
    if math.isnan(least):
        return f"{runs} runs show no Kendall coefficient at 5 % with a chance of {POWER:.0%}.{drawn}"
    return (
        f"{runs} independent runs show a Kendall coefficient of {least:.2f} or more, of either sign, at 5 % with a "
        f"chance of {POWER:.0%}.{drawn}"
    )


@dataclass(frozen=True)
class Correlations:
    """What ``correlate`` found.

    Attributes:
        table: one row a measure and data set: each coefficient with ``_lower``, ``_upper`` (95 % bootstrap) and ``_p``
            (permutations), Kendall's partial coefficients ``kendall given RIVAL`` with their intervals, and where runs
            state hyper-parameters ``granulated_kendall`` (and its part of each), ``conditional_mutual_information``,
            ``robust_sign_error``, ``worst_environment``. ``num_runs``, ``num_clusters`` (what the bootstrap draws) and
            ``detectable_kendall`` say how much it rests on. The trivial rivals are rows, too.
        points: one row a run, as :func:`points` makes it, with the trivial rivals.
        gap: ``loss`` or ``error``.
        warnings: what may be chance.
    """

    table: pd.DataFrame
    points: pd.DataFrame
    gap: str
    warnings: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """The table: one row a measure and data set."""
        return self.table

    @property
    def measures(self) -> list[str]:
        """The measures that have a coefficient in some data set."""
        return list(dict.fromkeys(self.table["measure"])) if len(self.table) else []

    @property
    def controlled(self) -> list[str]:
        """The columns of coefficients that control for something: for a trivial rival, or for hyper-parameters."""
        given = [f"kendall given {rival}" for rival in GIVEN]
        known = [column for column in given if column in self.table and self.table[column].notna().any()]
        return [*known, *(column for column in CONTROLLED if column in self.table)]

    def to_markdown(self) -> str:
        """For each data set a table, the best measure first; a line a measure, with the interval of Kendall's alone."""
        controlled = self.controlled
        shown = [c.removeprefix("kendall ").replace("_", " ") for c in controlled]
        head = ["measure", "runs", *(t.capitalize() for t in STATISTICS), *shown]
        lines = []
        for data, group in self.table.groupby("data", sort=False) if len(self.table) else ():
            best_first = group.sort_values("kendall", ascending=False, kind="stable")
            body = [_cells(row, controlled) for row in best_first.to_dict("records")]
            table = markdown_table(body, head)
            lines += [f"Generalization gap in the {self.gap}, {data}:", "", table, "", _power(group), ""]
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)]).rstrip()

    def save(self, directory: str | Path) -> list[Path]:
        """Write both tables, correlations.csv and points.csv; :mod:`genbound.figures.several_runs` draws them."""
        tables, points = Path(directory, "correlations.csv"), Path(directory, "points.csv")
        write_atomically(tables, lambda path: write_csv(self.table, path, index=False))
        write_atomically(points, lambda path: write_csv(self.points, path))
        return [tables, points]

    def _repr_html_(self) -> str:
        warnings = "".join(f"<p>Warning: {html.escape(warning)}</p>" for warning in self.warnings)
        return self.table.to_html(index=False, float_format="{:.3f}".format) + warnings


def _cells(row: Mapping[str, Any], controlled: Sequence[str]) -> list[str]:
    """A measure's line of the table as text."""
    cells = [row["measure"], str(row["num_runs"])]
    for title in STATISTICS:
        low, high, p = (row[f"{title}_{part}"] for part in ("lower", "upper", "p"))
        interval = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        how_sure = f"{interval}, p = {p:.2g}" if title == "kendall" else ""
        cells.append(f"{row[title]:.2f}{how_sure}")
    for column in controlled:
        low, high = (row.get(f"{column}_{side}", math.nan) for side in ("lower", "upper"))
        interval = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        cells.append("/" if math.isnan(row[column]) else f"{row[column]:.2f}{interval}")
    if "robust_sign_error" in controlled and isinstance(row["worst_environment"], str) and row["worst_environment"]:
        cells[-1] += f" ({row['worst_environment']})"
    return cells
