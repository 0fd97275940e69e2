"""The engine of one process: one part after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from genbound.engines.base import Stage, T, TimeBudgetSpent
from genbound.estimators.measured import Part


class InProcess:
    """Computes here what is not stored, and stores each part before the next is begun."""

    ranks, leads = 1, True

    def map(self, stage: Stage, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """The parts of all items, in their order."""
        found = stage.read(range(len(items)))
        with stage.bar(len(items), len(found)) as bar:
            for index in [index for index in range(len(items)) if index not in found]:
                if stage.seconds_left() < 0:
                    raise TimeBudgetSpent
                found[index] = function(items[index])
                stage.keep(index, found[index])
                bar.update()
        return [found[index] for index in range(len(items))]

    def settle(self, decide: Callable[[], T]) -> T:
        """What is decided here."""
        return decide()

    def together(self, work: Callable[[], T]) -> T:
        """What is found here."""
        return work()

    def gather(self, fact: T) -> list[T]:
        """What is said here."""
        return [fact]
