"""The engine of one process: one part after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from genbound.engines.base import Engine, Stage, T, TimeBudgetSpent
from genbound.estimators.measured import Part


class InProcess:
    """Computes here what is not stored, and stores each part before the next is begun."""

    ranks, leads, stores = 1, True, True

    def device(self, wanted: str) -> str:
        """The device as it is asked for."""
        return wanted

    def employ(self, work: Callable[[Engine], object]) -> None:
        """Nobody else is there."""

    def map(self, stage: Stage, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """The parts of all items, in their order."""
        found = stage.read(range(len(items)))
        count = stage.count(len(items), len(found))
        for index in [index for index in range(len(items)) if index not in found]:
            if stage.seconds_left() < 0:
                raise TimeBudgetSpent
            found[index] = function(items[index])
            stage.keep(index, found[index])
            count.update()
        return [found[index] for index in range(len(items))]

    def settle(self, decide: Callable[[], T]) -> T:
        """What is decided here."""
        return decide()

    def together(self, work: Callable[[], T]) -> T:
        """What is found here."""
        return work()

    def once(self, recall: Callable[[], T | None], work: Callable[[], T]) -> T:
        """What is recalled here, else what is found."""
        known = recall()
        return work() if known is None else known

    def gather(self, fact: T) -> list[T]:
        """What is said here."""
        return [fact]

    def close(self) -> None:
        """Nothing is left to do."""

    abandon = close
