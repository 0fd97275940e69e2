"""Bounds × checkpoints in one table: likes with likes, digits that follow the error, doubt as a column of text."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from genbound.errors import GenboundError
from genbound.formatting import digits, few, percent, value_text
from genbound.results.cells import markdown, markdown_table, write_csv
from genbound.results.common_range import observed_ranges, on_common_range
from genbound.results.gap import measured
from genbound.results.glance import change
from genbound.results.latex import latex_number, latex_text
from genbound.results.likeness import culprits, refuse_unlike, unlike
from genbound.results.results import Results
from genbound.results.runs import as_results
from genbound.results.shared_test_set import best_of_each_test_set

FORMATS = ("md", "csv", "latex", "html")
COLUMNS = ("bound", "bounds", "kind", "doubt")  # of a frame, beside those of the runs


def compare(
    runs: Iterable[Results | str | Path],
    *,
    allow_mixed: bool = False,
    reference: Results | str | Path | None = None,
) -> Comparison:
    """Put the bounds of several runs side by side.

    Args:
        runs: results, or where they are stored. At least one.
        allow_mixed: compare runs that were not measured alike; what differs becomes a doubt of the table. Without it
            bounds of runs with different observed C are put on the largest one.
        reference: a run, put first if it is none of the others, which then also show how many times its value theirs
            is.

    Returns:
        A table of bounds × runs that knows how to write itself as Markdown, CSV, LaTeX and HTML.

    Raises:
        GenboundError: the runs differ in loss, n, C, convention, data, test data, number of samples, head policy, layer
            partition or failure probability, and ``allow_mixed`` is not set.
    """
    runs = list(runs)
    place = None if reference is None else next((i for i, run in enumerate(runs) if _same(run, reference)), None)
    if reference is not None and place is None:
        runs, place = [reference, *runs], 0
    named = as_results(runs)
    name = None if place is None else list(named)[place]
    differing = unlike(named)
    mixed, rescaled = {key: culprits(key, values, named) for key, values in differing.items()}, ""
    if not allow_mixed:
        refuse_unlike(named, differing)
        named, rescaled = on_common_range(named)
    return Comparison(named, name, mixed, rescaled)


def _same(one: Results | str | Path, other: Results | str | Path) -> bool:
    if isinstance(one, Results) or isinstance(other, Results):
        return one is other
    return Path(one).resolve() == Path(other).resolve()


def _factor(mine: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> float | None:
    """One row of a bound over another's, ``None`` where one of them has no value."""
    if not mine or not theirs or mine["log10"] is None or theirs["log10"] is None:
        return None
    exponent = mine["log10"] - theirs["log10"]
    return 10**exponent if exponent < 308 else math.inf


@dataclass(frozen=True)
class Comparison:
    """Bounds × runs.

    Attributes:
        runs: name -> results.
        reference: name of the run that the others are set against, if any.
        mixed: conditions in which the runs differ although they are compared, each as text.
        rescaled: that the bounds are on one range C, as a sentence; empty if they are as the runs have them.
    """

    runs: Mapping[str, Results]
    reference: str | None = None
    mixed: Mapping[str, str] | None = None
    rescaled: str = ""

    @property
    def bounds(self) -> list[str]:
        """Every bound that any of the runs has, in the order of the runs."""
        return list(dict.fromkeys(name for results in self.runs.values() for name in results.bounds))

    def _rows(self, bound: str) -> dict[str, Mapping[str, Any] | None]:
        return {name: results.bounds.get(bound) for name, results in self.runs.items()}

    # -- tables --------------------------------------------------------------------------------------------------

    def to_frame(self) -> pd.DataFrame:
        """One row a bound, numbers in full, ``NaN`` where there is none.

        The columns are ``bounds`` (the unit) and ``kind``; for each run its value, ``… lower``, ``… upper``,
        ``… log10``, ``… gap_ratio`` and, with a reference, ``… / reference``; last ``doubt``. A run that has the name
        of another column is ``run NAME``.
        """
        table = []
        for bound in self.bounds:
            rows = self._rows(bound)
            known = next(row for row in rows.values() if row is not None)
            line: dict[str, Any] = {"bound": bound, "bounds": known["bounds"], "kind": known["kind"]}
            for name, row in rows.items():
                row = row or {}
                line[f"run {name}" if name in COLUMNS else name] = row.get("value")
                for side in ("lower", "upper", "log10", "gap_ratio"):
                    line[f"{name} {side}"] = row.get(side)
                if self.reference is not None and name != self.reference:
                    line[f"{name} / {self.reference}"] = _factor(row, rows[self.reference])
            table.append({**line, "doubt": self.doubt(bound)})
        frame = pd.DataFrame(table).set_index("bound")
        return frame.astype({column: float for column in frame.columns if column not in COLUMNS})

    def doubt(self, bound: str) -> str:
        """Everything that speaks against taking this row at its word; a reason names the runs that it holds for."""
        return "; ".join(self._reasons(bound))

    def _reasons(self, bound: str) -> list[str]:
        rows = self._rows(bound)
        present = [name for name, row in rows.items() if row is not None]
        reasons: dict[str, list[str]] = {}
        for name, row in rows.items():
            if row is None:
                reasons.setdefault("not computed", []).append(name)
                continue
            if row["vacuous"]:
                reasons.setdefault("vacuous", []).append(name)
            if row.get("below_gap"):
                reasons.setdefault("below the gap", []).append(name)
            if row["note"]:
                reasons.setdefault(row["note"], []).append(name)
        return [
            reason if len(names) == len(rows) or (names == present and len(rows) == 1) else f"{reason} ({few(names)})"
            for reason, names in reasons.items()
        ]

    def remarks(self) -> list[str]:
        """What holds for the table as a whole."""
        mixed = [f"Compared although not alike: {text}." for text in (self.mixed or {}).values()]
        return [*mixed, *self._ranges(), *self._options(), *self._versions(), *best_of_each_test_set(self.runs)]

    def _ranges(self) -> list[str]:
        if self.rescaled:
            return [self.rescaled]
        observed = observed_ranges(self.runs)
        each = few([f"{digits(value)} in {name}" for name, value in observed.items()])
        differ = len(set(observed.values())) > 1
        return [f"C is the largest loss seen and differs: {each}."] if differ else []

    def _options(self) -> list[str]:
        options = [run.config.get("options", {}) for run in self.runs.values()]
        quantities = dict.fromkeys(q for o in options for q in o)
        odd = [q for q in quantities if len({repr(o[q]) for o in options if q in o}) > 1]
        return [f"Measured with different options: {', '.join(odd)}."] if odd else []

    def _versions(self) -> list[str]:
        versions = sorted({run.genbound for run in self.runs.values()})
        differ = len(versions) > 1
        return [f"Measured by different versions of genbound: {', '.join(versions)}."] if differ else []

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """``(head, rows)`` as text."""
        factors = [name for name in self.runs if self.reference is not None and name != self.reference]
        head = ["bound", "of", *self.runs, *(f"{name} / {self.reference}" for name in factors), "doubt"]
        body = []
        for bound in self.bounds:
            rows = self._rows(bound)
            unit = next(row for row in rows.values() if row is not None)["bounds"]
            values = ["/" if row is None else value_text(row) for row in rows.values()]
            theirs = None if self.reference is None else rows[self.reference]
            ratios = [_factor(rows[name], theirs) for name in factors]
            body.append([bound, unit, *values, *("/" if r is None else digits(r) for r in ratios), self.doubt(bound)])
        return head, body + [[*row, *[""] * len(factors), ""] for row in self._measured()]

    def _measured(self) -> list[list[str]]:
        """What the bounds are to be held against."""
        ranges = [(run.config.get("loss_range") or {}).get("value") for run in self.runs.values()]
        known = ["/" if c is None else digits(c) for c in ranges]
        rows = [["measured with loss range C", "loss", *known]] if any(c is not None for c in ranges) else []
        for key, title, unit, text in (
            ("train_loss", "training loss", "loss", digits),
            ("generalization_gap", "generalization gap", "loss", digits),
            ("error_gap", "generalization gap", "error", percent),
        ):
            values = [measured(results, key) for results in self.runs.values()]
            if any(value is not None for value in values):
                rows.append([f"measured {title}", unit, *("/" if v is None else text(v) for v in values)])
        return rows

    def _numbered(self) -> tuple[list[str], list[list[str]], list[str]]:
        """``(head, rows, doubts)``: a line a bound, its doubts by number; each doubt is said once, below the table."""
        head, body = self.cells()
        doubts: dict[str, int] = {}
        for bound, row in zip(self.bounds, body, strict=False):
            row[-1] = " ".join(f"[{doubts.setdefault(reason, len(doubts) + 1)}]" for reason in self._reasons(bound))
        return head, body, [f"[{number}] {reason}" for reason, number in doubts.items()]

    # -- formats -------------------------------------------------------------------------------------------------

    def to(self, form: str) -> str:
        """The table as ``md``, ``csv``, ``latex`` or ``html``."""
        writers: dict[str, Callable[[], str]] = {
            "md": self.to_markdown, "csv": self.to_csv, "latex": self.to_latex, "html": self.to_html,
        }  # fmt: skip
        if form not in writers:
            raise GenboundError(f"format {form!r} is unknown: use {', '.join(FORMATS)}")
        return writers[form]()

    def summary(self) -> str:
        """Whether the last of several runs is worse than the first, in a sentence or two; empty for a single one."""
        if len(self.runs) < 2:
            return ""
        (first, before), (last, after) = (list(self.runs.items())[place] for place in (0, -1))
        short, said = change(after, before)
        return f"{last} against {first}, the first given: {short}. {said}"

    def to_markdown(self) -> str:
        """A table of cells as they are shown, a line a bound; below it each doubt once, and the remarks."""
        head, body, doubts = self._numbered()
        blocks = [[markdown_table(body, head)], [markdown(doubt) for doubt in doubts], self.remarks()]
        return "\n\n".join("  \n".join(block) for block in blocks if block)

    def to_csv(self) -> str:
        """Full precision, in the columns of :meth:`to_frame`."""
        buffer = io.StringIO()
        write_csv(self.to_frame(), buffer)
        return buffer.getvalue().rstrip("\n")

    def to_latex(self) -> str:
        r"""A booktabs table; it needs ``\usepackage{booktabs}``. Each doubt stands once, below it."""
        head, body, doubts = self._numbered()
        lines = [
            f"\\begin{{tabular}}{{ll{'r' * (len(head) - 3)}l}}",
            "\\toprule",
            " & ".join(latex_text(h) for h in head) + " \\\\",
            "\\midrule",
        ]
        measured = False
        for row in body:
            if row[0].startswith("measured ") and not measured:
                measured = True
                lines.append("\\midrule")
            cells = [latex_text(row[0]), latex_text(row[1]), *map(latex_number, row[2:-1]), latex_text(row[-1])]
            lines.append(" & ".join(cells) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}"]
        return "\n".join(lines + [f"\n{latex_text(remark)}" for remark in [*doubts, *self.remarks()]])

    def to_html(self) -> str:
        """A bare ``<table>`` with the remarks below it."""
        head, body = self.cells()
        cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
        rows = "\n".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in body)
        remarks = "".join(f"\n<p>{html.escape(r)}</p>" for r in self.remarks())
        return (
            f'<table class="genbound">\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>{remarks}'
        )

    def _repr_html_(self) -> str:
        return self.to_html()
