"""An engine that follows one elsewhere: it runs the driver in a thread and computes the parts that it is told to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from genbound.engines.base import Engine, Stage, T
from genbound.engines.failures import is_shared, packed, share, unpacked
from genbound.errors import GenboundError
from genbound.estimators.measured import Part

# What the leader says: compute a part, say a fact; here is what was decided or found, here is what failed.
COMPUTE, ASK, GIVE, FAIL = "compute", "ask", "give", "fail"
LOOK = 0.2  # seconds between two looks at whether the driver still runs


class Follower:
    """The engine of the driver, and the ear and mouth of its process.

    Args:
        work: the whole run with the engine that it is given.
        ranks: how many processes take part.
    """

    leads, stores = False, False

    def __init__(self, work: Callable[[Engine], object], ranks: int):
        self.ranks = ranks
        self._heard: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._said: queue.Queue[tuple[Any, list[BaseException] | None]] = queue.Queue()
        self._ended: list[BaseException] | None = None
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Engine], object]) -> None:
        try:
            work(self)
            self._ended = packed(GenboundError("the run had ended there"))
        except BaseException as error:
            self._ended = packed(error)

    def hear(self, kind: str, content: Any) -> None:
        """What the leader says, which the driver comes to in its time."""
        self._heard.put((kind, content))

    def ready(self) -> None:
        """Come back when the driver has loaded what it needs and listens for the first time, or has ended."""
        while not self._listening.wait(LOOK):
            if not self._thread.is_alive():
                return

    def _next(self) -> tuple[str, Any]:
        """What the driver is told next."""
        self._listening.set()
        return self._heard.get()

    def answer(self, kind: str, content: Any) -> tuple[Any, list[BaseException] | None]:
        """What the driver answers, and what went wrong."""
        self.hear(kind, content)
        while True:
            try:
                return self._said.get(timeout=LOOK)
            except queue.Empty:
                if not self._thread.is_alive() and self._said.empty():
                    return None, self._ended

    def device(self, wanted: str) -> str:
        """The device as it is asked for; Ray shows each actor its own."""
        return wanted

    def employ(self, work: Callable[[Engine], object]) -> None:
        """The leader has done it."""

    def close(self) -> None:
        """The leader ends this process."""

    abandon = close

    # -- the engine -----------------------------------------------------------------------------------------------

    def map(self, stage: Stage, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """The parts of all items, in their order: computed here or elsewhere."""
        while True:
            kind, content = self._next()
            if kind == COMPUTE:
                self._said.put(_attempt(function, items[_of(stage, content)]))
            else:
                # What travels cannot be written to; a driver may do so.
                parts = _of(stage, _given(kind, content))
                return [{key: np.array(value) for key, value in part.items()} for part in parts]

    def settle(self, decide: Callable[[], T]) -> T:
        """What the leader has decided."""
        return _given(*self._next())

    def together(self, work: Callable[[], T]) -> T:
        """What is found here. A failure is said when the leader next asks, and then it is everybody's."""
        try:
            return work()
        except Exception as error:
            if is_shared(error):
                raise
            while True:
                kind, content = self._next()
                if kind in (COMPUTE, ASK):
                    self._said.put((None, packed(error)))
                elif kind == FAIL:
                    _given(kind, content)

    def once(self, recall: Callable[[], T | None], work: Callable[[], T]) -> T:
        """What is known, or what all of them find together."""
        known = self.settle(recall)
        return work() if known is None else known

    def gather(self, fact: T) -> list[T]:
        """What each process says, this one too where it came later."""
        kind, content = self._next()
        if kind != ASK:
            return [*_given(kind, content), fact]
        self._said.put((fact, None))
        return _given(*self._next())


def _given(kind: str, content: Any) -> Any:
    if kind == FAIL:
        raise share(unpacked(content, ""), speaks=False)
    if kind != GIVE:
        raise GenboundError(f"a worker is out of step with its leader: it was told to {kind} in another place")
    return content


def _of(stage: Stage, content: Any) -> Any:
    """What the leader says of a stage; it must be the one that is measured here."""
    key, said = content if isinstance(content, tuple) and len(content) == 2 else ("another place", None)
    if key != stage.key:
        raise GenboundError(
            f"a worker is out of step with its leader: it is at the {stage.key}, its leader at the {key}"
        )
    return said


def _attempt(function: Callable[[Any], Part], item: Any) -> tuple[Part | None, list[BaseException] | None]:
    try:
        return function(item), None
    except Exception as error:
        return None, packed(error)
