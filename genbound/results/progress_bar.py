"""One bar for all that a command does: drawn on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from genbound.errors import is_told_by_another, printable, tell
from genbound.formatting import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

# Between two lines: at least so long, a quarter of what has passed, and at most so long, in seconds. An hour has 26.
SOONEST, LATEST, SHARE = 10.0, 600.0, 0.25


class Bar:
    """How far something is, on standard error.

    Args:
        clock: seconds that pass.

    Attributes:
        above: what is drawn over the bar, made for so many columns and lines; on a terminal alone.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._begun = clock, clock()
        self._due = self._begun + SOONEST
        self._share, self._doing = 0.0, ""
        self._left: float | None = None
        self._console: Any = None
        self._live: Any = None
        self._opened = False
        self.above: Callable[[int, int], Sequence[RenderableType]] = lambda width, height: ()

    @property
    def draws(self) -> bool:
        """Whether it is drawn, and not told in lines."""
        return self._live is not None

    def __enter__(self) -> Bar:
        return self

    def _open(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        if not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._drawn, transient=True, refresh_per_second=4,
                redirect_stdout=sys.stdout.isatty(), vertical_overflow="crop",
            )  # fmt: skip
            self._live.start()

    def show(self, share: float, doing: str, left: float | None = None) -> None:
        """Say how far it is.

        Args:
            share: what is done of the whole, from 0 to 1.
            doing: what is being done.
            left: seconds that it will take from here on; ``None`` where nobody knows.
        """
        if is_told_by_another():
            return
        self._share, self._doing = min(max(share, 0.0), 1.0), " ".join(printable(doing).split())
        self._left = None if left is None else self._clock() + left
        if not self._opened:  # not before there is something to show
            self._opened = True
            if sys.stderr.isatty():
                self._open()
        if self._live is None and self._clock() >= self._due:
            passed = self._clock() - self._begun
            self._due = self._clock() + min(max(SOONEST, SHARE * passed), LATEST)
            tell(f"{self._percent()}, {self._times()}: {self._doing}")

    def _percent(self) -> str:
        return f"{100 * self._share:.0f} %"

    def _times(self) -> str:
        passed = f"{duration(self._clock() - self._begun)} so far"
        if self._left is None or self._share == 1.0:
            return passed
        return f"{passed}, about {duration(max(1.0, self._left - self._clock()))} left"

    def _drawn(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width, height = self._console.size
        line = Table.grid(padding=(0, 1))
        line.add_column(width=20)
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(
            ProgressBar(total=1.0, completed=self._share, width=20),
            Text(f"{self._percent()}  {self._times()}  {self._doing}", overflow="ellipsis", no_wrap=True),
        )
        return Group(*self.above(width, height - 2), line)

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
