"""Signs of life: who waits for another process hears whether it is still there.

An ended process is noticed at once by its launcher. One that was cut off, or stands still, is not: the others would
wait for it for ever.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any

from genbound.errors import GenboundError

PATIENCE = 60.0  # seconds without a sign after which a process counts as lost; GENBOUND_PATIENCE says otherwise


class Heartbeat:
    """Gives signs of this process, and looks for those of the others.

    The first process watches all, every other one the first: who is lost is seen by one that ends, and then by all.

    Args:
        store: where the signs are left, ``torch.distributed``'s.
        rank: of this process.
        ranks: how many there are.
    """

    def __init__(self, store: Any, rank: int, ranks: int):
        self.patience = float(os.environ.get("GENBOUND_PATIENCE", PATIENCE))
        self._store, self._rank = store, rank
        self._watched = range(1, ranks) if rank == 0 else range(1)
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked, self._ended = time.monotonic(), threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="genbound heartbeat").start()

    def _beat(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(Exception):  # who waits will say that the store has gone
                self._store.add(f"alive/{self._rank}", 1)
            self._ended.wait(self.patience / 10)

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
