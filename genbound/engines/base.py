"""What an engine is: it computes the parts of a stage, wherever that may be, and hands all of them back.

A quantity is a driver around ``context.map(stage, items, function)``; the rest is arithmetic on *all* parts. So every
process runs the whole driver, and an engine splits the parts alone. Random numbers are named by seed, quantity, stage
and draw, passes never reach across a part, and what is decided is decided from all parts: the numbers are the same,
whoever computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from genbound.estimators.measured import Part

T = TypeVar("T")


class TimeBudgetSpent(Exception):
    """The time budget ran out between two parts; what is finished is stored."""


def _nothing(index: int) -> None:
    return None


@dataclass(frozen=True)
class Stage:
    """A stage of a measurement: what an engine knows of it beside its items.

    Attributes:
        title: what users call it.
        stored: the item's number -> its part, if an earlier run has stored it.
        keep: ``(number, part)``: stores a part as soon as it is there.
        seconds_left: of the time budget; infinite where there is none.
        key: names the work; processes that are at different keys have lost step with each other.
        advanced: hears ``(parts that are there, all parts)`` at the beginning and whenever there is one more.
        first: number of the first item among those of the stage, where it comes in runs.
    """

    title: str
    stored: Callable[[int], Part | None] = _nothing
    keep: Callable[[int, Part], None] = lambda index, part: None
    seconds_left: Callable[[], float] = lambda: float("inf")
    key: str = ""
    advanced: Callable[[int, int], None] = lambda done, total: None
    first: int = 0

    def read(self, indices: Iterable[int]) -> dict[int, Part]:
        """Those of these items' parts that are stored."""
        found = ((index, self.stored(index)) for index in indices)
        return {index: part for index, part in found if part is not None}

    def count(self, total: int, done: int) -> _Count:
        """Counts the items, of which some are done."""
        return _Count(self, total, done)


class _Count:
    """Counts the parts of a stage that are there, for whoever listens.

    Args:
        stage: whose parts they are.
        total: how many there are.
        done: how many are there at the beginning.

    Attributes:
        n: how many are there now.
    """

    def __init__(self, stage: Stage, total: int, done: int):
        self.n, self._total, self._advanced = done, total, stage.advanced
        self._advanced(done, total)

    def update(self, more: int = 1) -> None:
        """So many more are there."""
        self.n += more
        self._advanced(self.n, self._total)


class Engine(Protocol):
    """Computes the parts of stages, in one process or in several that all run the same driver.

    Attributes:
        ranks: how many processes compute.
        leads: this is the process that decides, writes results and speaks; the others follow it.
        stores: this process stores parts.
    """

    ranks: int
    leads: bool
    stores: bool

    def device(self, wanted: str) -> str:
        """The device of this process; where several measure on accelerators (``cuda``) each has its own."""
        ...

    def employ(self, work: Callable[[Engine], object]) -> None:
        """Let processes that are not started yet begin.

        Args:
            work: what each of them does with its engine: the same calls of it as this process makes.
        """
        ...

    def map(self, stage: Stage, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """The parts of all items, in their order, in every process.

        Raises:
            TimeBudgetSpent: the time budget is over and a part is missing; in every process.
            Exception: what the function raised in one of the processes, in every one of them.
        """
        ...

    def settle(self, decide: Callable[[], T]) -> T:
        """What the leading process decides, in every process; what fails there fails everywhere."""
        ...

    def together(self, work: Callable[[], T]) -> T:
        """What every process finds for itself; what fails in one fails everywhere."""
        ...

    def once(self, recall: Callable[[], T | None], work: Callable[[], T]) -> T:
        """What the leading process recalls; where it recalls nothing, what all of them find together."""
        ...

    def gather(self, fact: T) -> list[T]:
        """What each process says, in the order of their ranks, in every process."""
        ...

    def close(self) -> None:
        """All is done."""
        ...

    def abandon(self) -> None:
        """Something failed."""
        ...
