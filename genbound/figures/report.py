"""One self-contained HTML page of stored runs.

It has their bounds, plots, correlations, assumptions, configuration and provenance.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from genbound.errors import GenboundError
from genbound.figures.interactive import FIGURES, bounds_figure, correlation_figure
from genbound.figures.interactive_style import figure
from genbound.figures.one_run import plots_of
from genbound.figures.report_page import figures, page, table
from genbound.files import write_atomically
from genbound.formatting import digits, with_error
from genbound.quantities.catalogue import reading_of
from genbound.results.comparison import Comparison, compare
from genbound.results.correlation import CONTROLLED, FEWEST, correlate, points
from genbound.results.gap import UNITS, measured_gap
from genbound.results.rank_statistics import STATISTICS
from genbound.results.results import Results


def report(runs: Iterable[Results | str | Path], out: str | Path) -> Path:
    """Write the report of one run or several.

    Args:
        runs: results, or where they are stored. Runs that were not measured alike are shown together, and the page says
            so.
        out: the HTML file; plots, tables and scripts are all inside it (about 5 MB, most of it plotly).

    Raises:
        GenboundError: a run cannot be read, or plotly is not installed.
    """
    figure()  # plotly is missing before anything is read
    comparison = compare(runs, allow_mixed=True)
    named = comparison.runs
    head, body = comparison.cells()
    remarks = "".join(f'<p class="warning">{html.escape(remark)}</p>' for remark in comparison.remarks())
    sections = [
        (
            "bounds",
            "Bounds",
            remarks + table(head, body) + figures(bounds_figure(named, unit) for unit in UNITS),
        ),
        ("runs", "Layers, noise and samples", "".join(_run(name, results) for name, results in named.items())),
        ("assumptions", "Assumptions and notes", _assumptions(comparison)),
        ("provenance", "Configuration and provenance", _provenance(named)),
    ]
    correlations = _correlations(named)
    if correlations:
        sections.insert(1, ("correlations", "Correlation with the generalization gap", correlations))
    title = f"genbound: {', '.join(list(named)[:3])}" + (f" and {len(named) - 3} more" if len(named) > 3 else "")
    versions = ", ".join(sorted({results.genbound for results in named.values()}))
    text = page(title, sections, f"Measured with genbound {versions}.")
    path = Path(out)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _run(name: str, results: Results) -> str:
    drawn = [FIGURES[name](results) for name in plots_of(results)]
    return f"<h3>{html.escape(name)}</h3>{figures(drawn)}{_layers(results)}"


def _layers(results: Results) -> str:
    """One row a layer: what a reader asks of a layer first; layers.csv has everything."""
    chosen = [name for name in results.quantities if reading_of(name).by_layer]
    rows = []
    for layer in results.layer_rows:
        cells = [
            layer["name"],
            layer["kind"],
            " × ".join(map(str, layer["shape"])),
            "yes" if layer["positive_semidefinite"] else "no",
        ]
        for quantity in chosen:
            row = results.quantities[quantity]["layers"].get(layer["name"])
            cells.append("/" if row is None or row["value"] is None else with_error(row["value"], row.get("sem", 0.0)))
        rows.append(cells)
    return table(["layer", "kind", "shape", "PSD", *chosen], rows)


def _correlations(named: Mapping[str, Results]) -> str:
    """Tables and plots of each data set; nothing where a run has no gap, or a data set too few runs."""
    sizes = Counter(results.data.get("sha256") or results.data.get("spec") for results in named.values())
    gaps = [measured_gap(results, "loss") for results in named.values()]
    if None in gaps or not sizes or min(sizes.values()) < FEWEST:
        return ""
    try:
        found = correlate(points(named.values(), allow_mixed=True), num_resamples=999)
    except GenboundError as error:
        return f'<p class="warning">{html.escape(str(error))}</p>'
    parts = [f'<p class="warning">{html.escape(warning)}</p>' for warning in found.warnings]
    for data, group in found.table.groupby("data", sort=False) if len(found.table) else ():
        drawn = correlation_figure(found.points[found.points["data"] == data], list(group["measure"]), str(data))
        parts += [f"<h3>{html.escape(str(data))}</h3>", _coefficients(group), figures([drawn])]
    return "".join(parts)


def _coefficients(group: pd.DataFrame) -> str:
    """One row a measure: each coefficient with its 95 % interval and p-value, then those that control for settings."""
    controlled = [column for column in CONTROLLED if column in group]
    head = ["measure", *(text for title in STATISTICS for text in (title, f"p ({title})"))]
    rows = []
    for row in group.to_dict("records"):
        cells = [row["measure"]]
        for title in STATISTICS:
            interval = f"[{row[f'{title}_lower']:.2f}, {row[f'{title}_upper']:.2f}]"
            cells += [f"{row[title]:.2f} {interval}", digits(row[f"{title}_p"], 2)]
        rows.append(cells + ["/" if math.isnan(row[c]) else f"{row[c]:.2f}" for c in controlled])
    return table([*head, *(column.replace("_", " ") for column in controlled)], rows)


def _assumptions(comparison: Comparison) -> str:
    rows = []
    for name, results in comparison.runs.items():
        for bound, row in results.bounds.items():
            rows.append([name, bound, row["kind"], row["bounds"], row["reference"], row["note"]])
        rows += [[name, quantity, "quantity", "", "", note] for quantity, note in results.notes.items()]
        for quantity, summary in results.quantities.items():
            if isinstance(summary.get("note"), str) and summary["note"]:
                rows.append([name, quantity, "quantity", "", "", summary["note"]])
    text = (
        "<p>A <em>measure</em> is the leading term of a theorem with its constants left out: no guarantee. "
        "A <em>norm</em> bounds nothing. A value <em>below the gap</em> is less than the gap measured in the same run: "
        "it did not bound this network. "
        "A bound is <em>vacuous</em> where the training loss (or error) and the bound together are no smaller than "
        "what the best constant prediction reaches. Bounds of different units (loss, error, distance) "
        "are not to be ranked against each other.</p>"
    )
    return text + table(["run", "measure", "kind", "of", "reference", "note"], rows)


def _provenance(named: Mapping[str, Results]) -> str:
    parts = []
    for name, results in named.items():
        entries: dict[str, Any] = {
            "checkpoint": results.checkpoint, "init": results.init, "data": results.data, "genbound": results.genbound,
            "schema_version": results.schema_version, **results.config, "cost": results.cost,
        }  # fmt: skip
        rows = [[key, text] for key, value in entries.items() for key, text in _flat(key, value)]
        parts.append(f'<h3>{html.escape(name)}</h3><div class="provenance">{table(["entry", "value"], rows)}</div>')
    return "".join(parts)


def _flat(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for inner, item in value.items() for pair in _flat(f"{key}.{inner}", item)]
    return [(key, f"{value:.4g}" if isinstance(value, float) else str(value))]
