"""The measuring of one quantity: stage by stage, from what is stored where something is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from genbound.engines.base import Engine, Stage
from genbound.engines.in_process import InProcess
from genbound.estimators.measured import Measured, Part
from genbound.evaluation.out_of_memory import with_less_memory
from genbound.evaluation.sealed import NOTHING, digest_of, digest_of_arrays
from genbound.evaluation.store import DiskStore, MemoryStore
from genbound.network.refusals import refusals
from genbound.network.weights import BaseProblem
from genbound.quantities import QUANTITIES
from genbound.quantities.base import Context
from genbound.results.results import to_plain

State = TypeVar("State")
FIRST_RUN = 256  # parts of a stage that are reduced before their size is known
EACH = 4  # parts of a run for each process or more, about: so that they end it at about the same time
ROOM = 2**26  # bytes that the parts of later runs take, about


@dataclass
class StoredContext(Context):
    """What a measurement is given: its options, earlier quantities, and a map that keeps finished parts.

    Attributes:
        name: of the quantity.
        seed: of all randomness.
        options: its options.
        measured: the quantities before it.
        store: where its parts are kept.
        deadline: time on the monotonic clock, in seconds, after which no further part is started.
        confusion: label noise ``F[y, z] = P(observed z | true y)``, of a quantity that reads it.
        earlier: seconds that calls before this one spent on what is not finished.
        begun: when this one began, on the monotonic clock.
        engine: what computes the parts.
        advanced: hears ``(stage, parts that are there, parts of the stage)`` as they come.
        tidied: called when a part is done.
    """

    name: str
    seed: int
    options: Any
    measured: Mapping[str, Measured]
    store: MemoryStore
    deadline: float | None = None
    confusion: np.ndarray | None = None
    earlier: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    engine: Engine = field(default_factory=InProcess)
    advanced: Callable[[str, int, int], None] = lambda stage, done, total: None
    tidied: Callable[[], None] = lambda: None
    _behind: str = NOTHING

    def map(self, stage: str, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """The parts of all items, in their order.

        What is not stored is computed by the engine; each part is stored as soon as it is there.

        Raises:
            TimeBudgetSpent: the deadline is over and a part is missing.
        """
        parts: list[Part] = []
        for run in self._in_runs(stage, items, function, len(items)):
            parts += run
        return parts

    def reduce(
        self,
        stage: str,
        items: Sequence[Any],
        function: Callable[[Any], Part],
        merge: Callable[[State, Any, Part], State],
        start: State,
    ) -> State:
        """Likewise ``merge(state, item, part)`` over all of them, in their order, from ``start`` on.

        Parts are computed and exchanged in runs, of which one is in memory at a time.
        """
        state, place = start, 0
        for run in self._in_runs(stage, items, function, max(FIRST_RUN, EACH * self.engine.ranks)):
            run.reverse()
            while run:  # what is merged is gone before the next run is computed
                state = merge(state, items[place], run.pop())
                place += 1
        return state

    def _in_runs(
        self, stage: str, items: Sequence[Any], function: Callable[[Any], Part], size: int
    ) -> Iterator[list[Part]]:
        """The parts, run by run: so many items first, then as many as have room. Nothing else may come between."""
        if self.engine.leads:
            self.store.begin(stage, len(items))
        behind, digests, first = self._behind, [], 0
        while first < len(items) or not first:
            some = items[first : first + size]
            parts = self.engine.map(self._stage(stage, len(items), first, behind), some, function)
            if self.store.keeps:  # later stages are planned by these parts
                digests += [digest_of_arrays(part) for part in parts]
            first += max(1, len(some))
            # Everywhere the same, for everybody has the same parts.
            taken = sum(array.nbytes for part in parts for array in part.values())
            size = next_run(len(items) - first, self.engine.ranks, taken / max(1, len(some)))
            yield parts
        if self.store.keeps:
            self._behind = digest_of(behind, stage, digests)

    def _stage(self, stage: str, num: int, first: int, behind: str) -> Stage:
        """What the engine knows of a run of a stage; its parts belong to what the stages before it found."""

        def keep(index: int, part: Part) -> None:
            self.store.save_part(f"{stage}-{first + index}", part, behind)
            self.tidied()
            if self.engine.leads:
                self.store.spend(self.earlier + time.monotonic() - self.begun)

        run = f", from {first} on" if first else ""
        return Stage(
            f"{self.name}: {stage}", lambda index: self.store.part(f"{stage}-{first + index}", behind), keep,
            self._seconds_left, f"stage {stage} of {self.name}, {num} parts{run}",
            lambda done, _: self.advanced(stage, first + done, num), first,
        )  # fmt: skip

    def _seconds_left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()


def next_run(left: int, ranks: int, size: float) -> int:
    """How many of the parts that are left come in one run.

    The processes wait for the last of them at its end. So there are no more runs than have to be, and none is short.

    Args:
        left: parts.
        ranks: processes that compute them.
        size: of a part, in bytes.
    """
    most = max(EACH * ranks, int(ROOM / max(1.0, size)))
    return max(1, -(-left // max(1, round(left / most))))


def open_store(out: str | Path | None, name: str, *depends_on: Any) -> MemoryStore:
    """Where the parts of a quantity are kept.

    Args:
        out: directory of the results; ``None`` keeps nothing.
        name: of the quantity.
        depends_on: everything that its numbers depend on.
    """
    if out is None:
        return MemoryStore()
    return DiskStore(Path(out), name, digest_of(*depends_on))


def why_not(problem: BaseProblem, name: str, measured: Mapping[str, Measured]) -> str:
    """Why a quantity cannot be measured; empty if it can."""
    quantity = QUANTITIES[name]
    if quantity.needs_data and problem.data is None:
        return problem.reason
    lacking = [required for required in quantity.requires if required not in measured]
    if lacking:
        return f"needs {', '.join(lacking)}, which was not measured"
    reason = quantity.applies_to(problem)
    return "" if reason is None else f"does not apply: {reason}"


def measure_stages(problem: BaseProblem, context: StoredContext) -> tuple[Measured, float]:
    """What a quantity finds, and the seconds that took, those of earlier calls that did not finish it with them."""
    return context.engine.once(context.store.measured, lambda: _measured(problem, context))


def _measured(problem: BaseProblem, context: StoredContext) -> tuple[Measured, float]:
    engine = context.engine
    context.earlier, context.begun = context.store.spent(), time.monotonic()
    with torch.random.fork_rng(devices=[]), refusals():
        # A context of its own for each attempt: what is finished comes from the store.
        found = with_less_memory(
            problem, context.name,
            lambda: engine.together(lambda: QUANTITIES[context.name].measure(problem, replace(context))),
        )  # fmt: skip
    found, seconds = replace(found, summary=to_plain(found.summary)), context.earlier + time.monotonic() - context.begun
    engine.settle(lambda: context.store.save_measured(found, seconds))
    return found, seconds
