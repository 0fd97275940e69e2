"""Signs of life: who waits for another process hears whether it is still there.

An ended process is noticed at once by its launcher. One that was cut off, or stands still, is not: the others would
wait for it for ever. And it would wait for them: a question to a server that cannot be reached has no end, and nothing
inside Python interrupts it. So a process whose own signs do not arrive any more ends itself. Its finished parts are
stored.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Any

from genbound.errors import GenboundError

CUT_OFF = 2  # exit status of a process that has lost the others
PATIENCE = 60.0  # seconds without a sign after which a process counts as lost; GENBOUND_PATIENCE says otherwise


def patience() -> float:
    """Seconds without a sign after which a process counts as lost."""
    return float(os.environ.get("GENBOUND_PATIENCE", PATIENCE))


class Heartbeat:
    """Gives signs of this process, and looks for those of the others.

    The first process watches all, every other one the first: who is lost is seen by one that ends, and then by all.

    Args:
        store: where the signs are left, ``torch.distributed``'s.
        rank: of this process.
        ranks: how many there are.
    """

    def __init__(self, store: Any, rank: int, ranks: int):
        self.patience = patience()
        self._store, self._rank = store, rank
        self._watched = range(1, ranks) if rank == 0 else range(1)
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked, self._arrived, self._ended = time.monotonic(), time.monotonic(), threading.Event()
        for work in (self._beat, self._watch):
            threading.Thread(target=work, daemon=True, name="genbound heartbeat").start()

    def _beat(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(Exception):  # who waits will say that the store has gone
                self._store.add(f"alive/{self._rank}", 1)
            self._arrived = time.monotonic()
            self._ended.wait(self.patience / 10)

    def _watch(self) -> None:
        """End the process when its signs do not arrive, somewhat later than the others have given it up."""
        while not self._ended.wait(self.patience / 10):
            if time.monotonic() - self._arrived > 1.5 * self.patience:
                print(
                    f"genbound: error: rank {self._rank} has not reached the others for {1.5 * self.patience:.0f} s, "
                    "it may be cut off: with --out, what was finished is kept and the same command continues",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                os._exit(CUT_OFF)

    def check(self) -> None:
        """Look for signs of those that this process watches, now and then.

        Raises:
            GenboundError: one has given none for too long.
        """
        now = time.monotonic()
        if now - self._looked < self.patience / 10:
            return
        self._looked = now
        for rank in self._watched:
            sign = self._store.add(f"alive/{rank}", 0)
            last, since = self._seen.get(rank, (-1, now))
            self._seen[rank] = (sign, now if sign != last else since)
            if sign == last and now - since > self.patience:
                raise GenboundError(f"rank {rank} has given no sign for {self.patience:.0f} s, it may be cut off")

    def stop(self) -> None:
        """Give no more signs."""
        self._ended.set()
