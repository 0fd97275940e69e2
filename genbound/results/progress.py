"""How far a run is: noted beside its parts while it measures, and read by ``genbound status`` without torch.

The notes are no results. One that is lost or cut short makes the report poorer, and stops nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from genbound.errors import GenboundError, printable
from genbound.formatting import duration
from genbound.results.cells import markdown_table

PLAN, STAGES, SPENT = "plan.json", "stages", "seconds"  # of a run; of a quantity


class Plan:
    """What a run measures, written to ``DIR/parts`` as it goes on.

    Args:
        out: directory of the results; ``None`` notes nothing.
        gradients: quantity -> its forecast cost in gradients over the measured samples, in the order of the run.
    """

    def __init__(self, out: str | os.PathLike | None, gradients: Mapping[str, float]):
        self._path = None if out is None else Path(out) / "parts" / PLAN
        self._rows: dict[str, dict[str, Any]] = {name: {"gradients": cost} for name, cost in gradients.items()}
        self._failure = ""
        self._write()

    def note(self, name: str, **facts: Any) -> None:
        """What is known of a quantity: the ``folder`` of its parts, or the ``reason`` why it is not measured."""
        self._rows[name].update(facts)
        self._write()

    def fail(self, reason: str) -> None:
        """What has ended the run."""
        self._failure = reason
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            text = json.dumps({"quantities": self._rows, "failure": self._failure})
            with suppress(OSError):
                self._path.write_text(text, encoding="utf-8")


def status(folder: str | os.PathLike) -> str:
    """The report of ``genbound status``: quantities, stages, parts done and left, failures, and what is left to do.

    Args:
        folder: the ``--out`` of a run, while it measures or after it has ended.

    Raises:
        GenboundError: no run was begun there.
    """
    out = Path(folder)
    plan = _read(out / "parts" / PLAN)
    held = _lock(out / ".lock")
    if not isinstance(plan.get("quantities"), dict):
        if held is not None:
            return printable(f"A run is loading: {held}. What it measures is not decided yet.")
        raise GenboundError(f"{folder} has no {PLAN} in its parts: no run was begun there, or one of another version")
    rows = {str(name): _Row(out / "parts", row) for name, row in plan["quantities"].items() if isinstance(row, dict)}
    table = markdown_table(
        [[name, *row.cells()] for name, row in rows.items()], ["quantity", "state", "stage", "parts", "time"]
    )
    sentences = [_holder(out, held), _left(list(rows.values()))]
    if plan.get("failure"):
        sentences.append(f"The last run ended with: {plan['failure']}")
    return printable("\n".join([table, "", *filter(None, sentences)]))


class _Row:
    """One quantity of a run, from the notes and the files of its parts."""

    def __init__(self, parts: Path, noted: Mapping[str, Any]):
        self.gradients = noted["gradients"] if isinstance(noted.get("gradients"), int | float) else 0.0
        self._reason = str(noted.get("reason", ""))
        self._folder = parts / Path(str(noted.get("folder", ""))).name if noted.get("folder") else None
        self.done = self._folder is not None and (self._folder / "summary.json").exists()
        self.left = not self.done and not self._reason
        self.seconds = self._seconds()

    def cells(self) -> list[str]:
        """State, stage, parts and time, as text."""
        if self._reason:
            return [self._reason, "", "", ""]
        if self.done:
            return ["done", "", "", duration(self.seconds)]
        stages = self._stages()
        if not stages:
            return ["waiting", "", "", ""]
        stage, num = list(stages.items())[-1]
        there = sum(1 for path in self._files() if path.name.rpartition("-")[0] == stage)
        return ["begun", f"{stage} (number {len(stages)})", f"{there} of {num}", duration(self.seconds)]

    def is_late(self, pace: float) -> bool:
        """Whether it has taken longer than its forecast, at so many seconds a gradient."""
        return self.seconds > self.gradients * pace

    def _stages(self) -> dict[str, int]:
        """Stage -> number of its parts, in the order in which they were begun."""
        found: dict[str, int] = {}
        with suppress(OSError, ValueError):
            for line in (self._folder or Path()).joinpath(STAGES).read_text(encoding="utf-8").splitlines():
                num, _, stage = line.partition("\t")
                found.pop(stage, None)  # a later run has begun it again
                found[stage] = int(num)
        return found

    def _files(self) -> list[Path]:
        return [] if self._folder is None else [p for p in self._folder.glob("*.npz") if not p.name.startswith(".")]

    def _seconds(self) -> float:
        if self._folder is None:
            return 0.0
        if self.done:
            found = _read(self._folder / "summary.json").get("seconds", 0.0)
            return float(found) if isinstance(found, int | float) else 0.0
        with suppress(OSError, ValueError):
            return float((self._folder / SPENT).read_text(encoding="utf-8"))
        return 0.0


def _left(rows: list[_Row]) -> str:
    """A forecast of what remains, at the pace of what is done."""
    left, done = [row for row in rows if row.left], [row for row in rows if row.done and row.gradients]
    if not left:
        return "Everything is measured."
    parts = f"{len(left)} of {sum(row.left or row.done for row in rows)} quantities are left"
    gradients, seconds = sum(row.gradients for row in done), sum(row.seconds for row in done)
    if not gradients or not seconds:
        return f"{parts}; how long they take shows when a costly one is done."
    pace = seconds / gradients
    more = sum(max(row.gradients * pace - row.seconds, 0.0) for row in left)
    longer = "what is under way takes longer than its forecast" if any(row.is_late(pace) for row in left) else ""
    if longer and not more:
        return f"{parts}, and {longer}: how much longer is not known."
    return (
        f"{parts}: about {duration(more)}, at the {duration(pace)} that a gradient over the samples took so far "
        f"(within a factor of about 3{'; ' * bool(longer)}{longer})."
    )


def _holder(out: Path, held: str | None) -> str:
    """Whether a run writes there now."""
    if held is not None:
        with suppress(OSError):
            if (out / ".lock").stat().st_mtime_ns > (out / "parts" / PLAN).stat().st_mtime_ns:
                return f"A run is loading: {held}. The table is of the run before it."
        return f"A run is measuring: {held}."
    if (out / "results.json").exists():
        with suppress(OSError):
            if (out / "parts" / PLAN).stat().st_mtime_ns > (out / "results.json").stat().st_mtime_ns:
                return "No run is measuring; results.json is of a run before this one: the same command continues."
        return "No run is measuring; results.json is there."
    return "No run is measuring: the same command continues."


def _lock(path: Path) -> str | None:
    """Who holds the lock; ``None`` if nobody does."""
    try:
        import fcntl

        with open(path, "r+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                said = _read(path)
                who = f"process {said.get('process', '?')} on {said.get('host', '?')}"
                return f"{who} since {said.get('since', '?')}"
    except (ImportError, OSError):
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
