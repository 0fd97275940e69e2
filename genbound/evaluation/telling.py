"""Who hears what is measured: the display of the terminal, and whoever asked to listen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from genbound.evaluation.asked import Asked, Found
from genbound.results.display import Display
from genbound.results.events import Advanced, Begun, Event, Finished, Listener, Planned
from genbound.results.progress_bar import Bar
from genbound.results.results import Results


class Telling:
    """Tells whoever listens what is measured.

    Args:
        asked: what was asked for.
        listen: hears it; ``None`` where nobody does.
    """

    def __init__(self, asked: Asked, listen: Listener | None):
        self._asked, self._order = asked, list[str]()
        self._listen: Listener = listen or (lambda event: None)

    def planned(self, gradients: Mapping[str, float]) -> None:
        """What is measured in which order, with the forecast costs."""
        self._order = list(gradients)
        self._listen(Planned(gradients))

    def begun(self, name: str) -> None:
        """A quantity is measured now."""
        self._listen(Begun(name))

    def advanced(self, name: str, stage: str, done: int, total: int) -> None:
        """One more part of it is there."""
        self._listen(Advanced(name, stage, done, total))

    def finished(self, name: str, found: Found) -> None:
        """It is measured, or passed over, which ``found`` says."""
        here = replace(found, measured={**found.measured}, seconds={**found.seconds}, notes={**found.notes})
        waiting = self._order[self._order.index(name) + 1 :]

        def known(reason: str) -> Results:
            return self._asked.conclude(replace(here, notes={**here.notes, **dict.fromkeys(waiting, reason)}))

        self._listen(Finished(name, found.notes.get(name, ""), found.seconds.get(name, 0.0), known))


@contextmanager
def shown(progress: bool | str, listen: Listener | None) -> Iterator[Listener | None]:
    """Whoever listens, and beside them a display where one is wanted."""
    if not progress:
        yield listen
        return
    with Bar() as bar:
        display = Display(bar, verbose=progress == "verbose")

        def both(event: Event) -> None:
            display(event)
            if listen is not None:
                listen(event)

        yield both
