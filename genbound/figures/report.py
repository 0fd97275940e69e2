"""One self-contained HTML page of stored runs.

It opens on the verdict; then come bounds, plots, correlations, assumptions, configuration and provenance.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from genbound.errors import GenboundError
from genbound.figures.interactive import FIGURES, bounds_figure, correlation_figure, spread_figure
from genbound.figures.interactive_style import figure
from genbound.figures.one_run import plots_of
from genbound.figures.report_page import cards, figures, folded, on_demand, page, table
from genbound.files import write_atomically
from genbound.formatting import digits, few, with_error
from genbound.quantities.catalogue import reading_of
from genbound.results.comparison import Comparison, compare
from genbound.results.correlation import FEWEST, correlate, points
from genbound.results.gap import UNITS, measured_gap
from genbound.results.glance import change, in_short
from genbound.results.rank_statistics import STATISTICS
from genbound.results.results import Results, read_samples
from genbound.results.runs import as_results
from genbound.results.verdict import DRIVER, GAP, GUARANTEE, WORSE, answers, leading, short_rows, verdict

Found = TypeVar("Found")
MANY = 24  # runs, from which on a page shows how they are spread
FOLDED_BYTES = 2_000_000  # of what belongs to one run alone: a page of many runs stays below 5 MB
UNFOLDED = 3  # runs that stand open
UNFOLDED_LAYERS = 12  # rows of a table of layers that stands open
ASKED = (GUARANTEE, GAP, DRIVER)
ONE_RUN = "One run alone does not say. A report of the earlier run and this one, in this order, does."
MOST_LINES = 400  # of what is said of measures: notes may hold numbers of their run


def report(runs: Iterable[Results | str | Path], out: str | Path) -> Path:
    """Write the report of one run or several.

    Args:
        runs: results, or where they are stored. Runs that were not measured alike are shown together, and the page says
            so; bounds of runs that were, but for their observed C, are on the largest one.
        out: the HTML file; plots, tables and scripts are all inside it (about 2 MB, most of it plotly). Of more than
            24 runs it shows how the bounds are spread, and folds up what belongs to one run.

    Raises:
        GenboundError: a run cannot be read, or plotly is not installed.
    """
    figure()  # plotly is missing before anything is read
    given = as_results(runs)
    comparison = _alike_or_mixed(compare, given)
    named = comparison.runs
    many = len(named) > MANY
    sections = [
        ("answer", "The answer", _answer(named)),
        ("bounds", "Bounds", _bounds(comparison, many)),
        ("runs", "Layers and samples", (_folded if many else _runs)(named)),
        ("assumptions", "Assumptions", _assumptions(comparison)),
        ("provenance", "Configuration", (_common if many else _provenance)(named)),
    ]
    correlations = _correlations(given)  # which puts each data set on an observed C of its own
    if correlations:
        sections.insert(2, ("correlations", "Correlation with the gap", correlations))
    title = f"genbound: {few(list(named))}"
    versions = ", ".join(sorted({results.genbound for results in named.values()}))
    lede = next(iter(named.values())).headline()[:2] if len(named) == 1 else [f"{len(named)} runs, each measured once."]
    text = page(title, lede, sections, f"Measured with genbound {versions}.")
    path = Path(out)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _alike_or_mixed(table: Callable[..., Found], named: Mapping[str, Results]) -> Found:
    """What ``compare`` or ``points`` gives: of runs that are alike on one observed C, of others as they are."""
    try:
        return table(named.values())
    except GenboundError:
        return table(named.values(), allow_mixed=True)


def _answer(named: Mapping[str, Results]) -> str:
    """The verdict of one run as cards, or that of each of several in a row; first, whether the last one is worse."""
    (first, before), (last, after) = (list(named.items())[place] for place in (0, -1))
    if len(named) == 1:
        short = in_short(after)
        said = [(question, short.get(question, ""), text) for question, text in answers(after).items()]
        return cards([*said, (WORSE, "", ONE_RUN)])
    worse = (f"{WORSE} {last} against {first}, the first given", *change(after, before))
    if len(named) > MANY:
        return cards([worse])
    found = cards([worse, *((f"{question} {last}", short, "") for question, short in in_short(after).items())])
    rows = []
    for name, results in named.items():
        short = in_short(results)
        rows.append([name, leading(results) or "/", *(short.get(question, "/") for question in ASKED)])
    head = ["run", "measure", "guarantee", "against the gap", "layer that carries most"]
    return found + table(head, rows, "The verdict on each run")


def _bounds(comparison: Comparison, many: bool) -> str:
    head, body = comparison.cells()
    drawn = figures([(spread_figure if many else bounds_figure)(comparison.runs, unit) for unit in UNITS])
    remarks = "".join(f'<p class="warning">{html.escape(remark)}</p>' for remark in comparison.remarks())
    if many:  # a row for each run: a table grows downwards
        head, body = (
            ["run", *(row[0] for row in body)],
            [[name, *(row[place] for row in body)] for place, name in enumerate(comparison.runs, start=2)],
        )
        return remarks + table(head, body, "Bounds, one row a run") + drawn
    kept = {name for results in comparison.runs.values() for name in short_rows(results)}
    few_rows = [row for row in body if row[0] in kept or row[0].startswith("measured ")]
    whole = table(head, body, "All bounds, with what they are held against")
    if not kept or len(few_rows) == len(body):
        return remarks + whole + drawn
    short = table(head, few_rows, "The leading measure, certificates, the smallest competitor, and what was measured")
    return remarks + short + folded(f"All {len(body)} rows", whole) + drawn


def _runs(named: Mapping[str, Results]) -> str:
    if len(named) == 1:
        return "".join(_run(read_samples(results), name) for name, results in named.items())
    parts = []
    for name, results in named.items():
        said = "".join(f"<p>{html.escape(line)}</p>" for line in verdict(results))
        parts.append(
            folded(name, said + _run(read_samples(results), name), heading=True, unfolded=len(named) <= UNFOLDED)
        )
    return "".join(parts)


def _run(results: Results, name: str) -> str:
    layers = _layers(results, name)
    few_layers = len(results.layer_rows) <= UNFOLDED_LAYERS
    drawn = figures(FIGURES[name](results) for name in plots_of(results))
    return drawn + (layers if few_layers else folded(f"All {len(results.layer_rows)} layers", layers))


def _folded(named: Mapping[str, Results]) -> str:
    """The layers of each run, and what it does not share with all others, where a reader opens it."""
    shared = _shared(named)
    parts = []
    for name, results in named.items():
        own = [[key, text] for key, text in _entries(results).items() if key not in shared]
        parts.append((name, _layers(results, name) + table(["entry", "value"], own, f"What {name} does not share")))
    text = "<p>Plots of a run, and its samples: <code>genbound report</code> of this run alone.</p>"
    return text + on_demand(parts, FOLDED_BYTES)


def _layers(results: Results, name: str) -> str:
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
    return table(["layer", "kind", "shape", "PSD", *chosen], rows, f"Layers of {name}, with standard errors")


def _correlations(named: Mapping[str, Results]) -> str:
    """Tables and plots of each data set; nothing where a run has no gap, or a data set too few runs."""
    sizes = Counter(results.data.get("sha256") or results.data.get("spec") for results in named.values())
    gaps = [measured_gap(results, "loss") for results in named.values()]
    if None in gaps or not sizes or min(sizes.values()) < FEWEST:
        return ""
    try:
        found = correlate(_alike_or_mixed(points, named), num_resamples=999)
    except GenboundError as error:
        return f'<p class="warning">{html.escape(str(error))}</p>'
    parts = [f'<p class="warning">{html.escape(warning)}</p>' for warning in found.warnings]
    for data, group in found.table.groupby("data", sort=False) if len(found.table) else ():
        drawn = correlation_figure(found.points[found.points["data"] == data], list(group["measure"]), str(data))
        parts += [f"<h3>{html.escape(str(data))}</h3>", _coefficients(group, found.controlled), figures([drawn])]
    return "".join(parts)


def _coefficients(group: pd.DataFrame, controlled: Sequence[str]) -> str:
    """One row a measure: each coefficient with its 95 % interval and p-value, then those that control for something."""
    head = ["measure", *(text for title in STATISTICS for text in (title, f"p ({title})"))]
    rows = []
    for row in group.to_dict("records"):
        cells = [row["measure"]]
        for title in STATISTICS:
            low, high = (row[f"{title}_{side}"] for side in ("lower", "upper"))
            interval = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
            cells += [f"{row[title]:.2f}{interval}", digits(row[f"{title}_p"], 2)]
        rows.append(cells + ["/" if math.isnan(row[c]) else f"{row[c]:.2f}" for c in controlled])
    return table([*head, *(column.replace("_", " ") for column in controlled)], rows, "Rank correlations with the gap")


def _assumptions(comparison: Comparison) -> str:
    """What is said of each measure; a line that several runs share stands once."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for name, results in comparison.runs.items():
        for bound, row in results.bounds.items():
            known = (bound, row["kind"], row["bounds"], row["reference"], row["note"])
            lines.setdefault(known, []).append(name)
        notes = dict(results.notes)
        for quantity, summary in results.quantities.items():
            if isinstance(summary.get("note"), str) and summary["note"]:
                notes.setdefault(quantity, summary["note"])
        for quantity, note in notes.items():
            lines.setdefault((quantity, "quantity", "", "", note), []).append(name)
    alone = len(comparison.runs) == 1
    rows = [
        [line[0], "all" if len(names) == len(comparison.runs) and not alone else few(names), *line[1:]]
        for line, names in list(lines.items())[:MOST_LINES]
    ]
    left = len(lines) - len(rows)
    more = f"<p>And {left} more lines: they stand in table.md of each run.</p>" if left else ""
    text = (
        "<p>A <em>measure</em> is the leading term of a theorem with its constants left out: no guarantee. "
        "A <em>norm</em> bounds nothing. A value <em>below the gap</em> is less than the gap measured in the same run: "
        "it did not bound this network. "
        "A bound is <em>vacuous</em> where the training loss (or error) and the bound together are no smaller than "
        "what the best constant prediction reaches. Bounds of different units (loss, error, distance) "
        "are not to be ranked against each other.</p>"
    )
    head = ["measure", "run", "kind", "of", "reference", "note"]
    return text + folded(f"{len(rows)} lines", table(head, rows, "What is said of each measure")) + more


def _provenance(named: Mapping[str, Results]) -> str:
    """Folded up: of interest where two runs disagree, and long."""
    parts = []
    for name, results in named.items():
        rows = [[key, text] for key, text in _entries(results).items()]
        parts.append(folded(name, table(["entry", "value"], rows, f"Configuration and provenance of {name}")))
    return "".join(parts)


def _common(named: Mapping[str, Results]) -> str:
    """What all of many runs have in common; the rest stands with each run."""
    rows = [[key, text] for key, text in _shared(named).items()]
    text = "<p>The same in all runs; what differs stands with each of them.</p>"
    return text + table(["entry", "value"], rows, "The same in all runs")


def _shared(named: Mapping[str, Results]) -> dict[str, str]:
    """The entries that are the same in all runs."""
    first, *others = (_entries(results).items() for results in named.values())
    kept = set(first).intersection(*others)
    return {key: text for key, text in first if (key, text) in kept}


def _entries(results: Results) -> dict[str, str]:
    """Where a run comes from and how it was measured, flat and as text."""
    entries: dict[str, Any] = {
        "checkpoint": results.checkpoint, "init": results.init, "data": results.data, "genbound": results.genbound,
        "schema_version": results.schema_version, **results.config, "cost": results.cost,
    }  # fmt: skip
    return {key: text for name, value in entries.items() for key, text in _flat(name, value)}


def _flat(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for inner, item in value.items() for pair in _flat(f"{key}.{inner}", item)]
    return [(key, f"{value:.4g}" if isinstance(value, float) else str(value))]
