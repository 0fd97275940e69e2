"""What an evaluation shows while it measures: how far it is, and on a terminal the table as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from genbound.errors import tell
from genbound.formatting import duration, gap_text, value_text
from genbound.results.drawn_tables import fitted
from genbound.results.events import Advanced, Begun, Event, Finished, Planned
from genbound.results.progress_bar import Bar
from genbound.results.results import Results

if TYPE_CHECKING:
    from rich.console import RenderableType

HEAD = ["bound", "value", "of", "kind", "value / gap"]
NOTHING = 0.1  # gradients that a quantity counts beside its forecast: loading, and what is no gradient
OFTEN = 0.5  # seconds between two tables


class Display:
    """A listener of an evaluation's events that shows them on standard error.

    What is left is the forecast at the pace of what is done: seconds for each gradient, from the quantities that are
    finished, those of earlier calls too.

    Args:
        bar: where it is shown.
        verbose: say of each quantity what it took.
        clock: seconds that pass.
    """

    def __init__(self, bar: Bar, verbose: bool = False, clock: Callable[[], float] = time.monotonic):
        self._bar, self._verbose, self._clock = bar, verbose, clock
        self._costs: dict[str, float] = {}  # of all that is planned
        self._finished: set[str] = set()
        self._seconds = self._gradients = 0.0  # of what was measured
        self._name, self._begun, self._doing = "", clock(), ""
        self._rows: Sequence[Sequence[str]] = ()
        self._made = -OFTEN
        bar.above = self._table

    def __call__(self, event: Event) -> None:
        """Show what has happened."""
        if isinstance(event, Planned):
            self._costs = {name: cost + NOTHING for name, cost in event.gradients.items()}
        elif isinstance(event, Begun):
            self._name, self._begun, self._doing = event.name, self._clock(), event.name
        elif isinstance(event, Advanced):
            self._doing = f"{event.name}, {event.stage} {event.done} of {event.total}"
        elif isinstance(event, Finished):
            self._finish(event)
        self._bar.show(self._share(), self._doing, self._left())

    def _finish(self, event: Finished) -> None:
        self._finished.add(event.name)
        self._name = ""
        if not event.reason:
            self._seconds += event.seconds
            self._gradients += self._costs.get(event.name, 0.0)
        if self._verbose:
            tell(f"{event.name}: {event.reason or duration(event.seconds)}")
        if self._bar.draws and self._clock() - self._made >= OFTEN:
            self._made = self._clock()
            self._rows = known_rows(event.known("not measured yet"))

    # -- how far it is --------------------------------------------------------------------------------------------

    def _waiting(self) -> float:
        """Gradients of what is neither finished nor being measured."""
        return sum(cost for name, cost in self._costs.items() if name not in self._finished and name != self._name)

    def _left(self) -> float | None:
        if not self._gradients:
            return None
        pace = self._seconds / self._gradients
        now = max(0.0, pace * self._costs.get(self._name, 0.0) - (self._clock() - self._begun)) if self._name else 0.0
        return pace * self._waiting() + now

    def _share(self) -> float:
        """Of the forecast gradients, those that are behind us."""
        whole = sum(self._costs.values())
        now = self._costs.get(self._name, 0.0)
        done = whole - self._waiting() - now
        if now and self._gradients and self._seconds:
            done += now * min(0.95, (self._clock() - self._begun) * self._gradients / self._seconds / now)
        return done / whole if whole else 0.0

    # -- the table ------------------------------------------------------------------------------------------------

    def _table(self, width: int, height: int) -> Sequence[RenderableType]:
        """The rows that are known, as many as there is room for; the last ones are the newest."""
        room = max(0, height - 4)
        if not self._rows or not room:
            return ()
        return [*fitted(HEAD, list(self._rows)[:room], width), ""]


def known_rows(results: Results) -> list[list[str]]:
    """A line for each bound that has a value by now."""
    return [
        [name, value_text(row), row["bounds"], row["kind"], gap_text(row)]
        for name, row in results.bounds.items()
        if row["value"] is not None or row["log10"] is not None
    ]
