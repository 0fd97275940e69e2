"""The engine of processes that torch.distributed joins: each computes some parts, all parts come back to all.

Parts travel over gloo, whatever device they were computed on. Who computes what is not fixed beforehand: each process
takes the next part from a counter, so that slow ones hold nobody up. Processes meet on that counter's server before
they exchange anything, so that none sits in an exchange that nothing interrupts while another one still computes. One
that is cut off during an exchange leaves the others in it: so it runs in a thread, beside which the signs of life are
looked at.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from genbound.engines.base import Engine, Stage, T, TimeBudgetSpent
from genbound.engines.failures import is_shared, packed, share, unpacked
from genbound.engines.heartbeat import CUT_OFF, Heartbeat, patience
from genbound.engines.launch import Launch
from genbound.errors import GenboundError, first_line
from genbound.estimators.measured import Part

ALL = 10**12  # more parts than there are: who takes them leaves none for the others
SHORTEST, LONGEST = 5e-4, 0.05  # seconds between two looks at whether the others have come
STARTING = 10  # times the patience with a silent rank, for all to have started: machines may come one by one
EXCHANGE = timedelta(minutes=10)  # all have come when an exchange begins, so it takes no longer than its bytes
CONTINUES = "with --out, what was finished is kept and the same command continues"


class Distributed:
    """One of several processes.

    Args:
        launch: how it was started.
    """

    stores = True

    def __init__(self, launch: Launch):
        os.environ.update(launch.environment)
        self._launch = launch
        self.rank, self.ranks, self.leads = launch.rank, launch.ranks, launch.rank == 0
        try:
            start = timedelta(seconds=STARTING * patience())
            store, _, _ = next(dist.rendezvous("env://", launch.rank, launch.ranks, timeout=start))
            # torchrun's restarted ranks find the same server, with what the ranks before them left there.
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            self._group = _group(store, launch)
        except (RuntimeError, ValueError, OSError) as error:
            raise GenboundError(
                f"rank {launch.rank} of {launch.ranks} found no companions ({first_line(error)}): see that all were "
                "started, and that MASTER_ADDR and MASTER_PORT can be reached"
            ) from error
        self._store, self._meetings = dist.PrefixStore("genbound", store), 0
        self._stuck = False
        self._heartbeat = Heartbeat(self._store, self.rank, self.ranks)
        self._names = self.gather(f"rank {self.rank} on {socket.gethostname()}")

    def device(self, wanted: str) -> str:
        """The accelerator of this rank where any will do (``cuda``)."""
        return self._launch.device(wanted)

    def employ(self, work: Callable[[Engine], object]) -> None:
        """All ranks are there already."""

    # -- the parts ------------------------------------------------------------------------------------------------

    def map(self, stage: Stage, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """The parts of all items, in their order; each process reads or computes a share."""
        found = stage.read(range(self.rank, len(items), self.ranks))
        known = self._exchange((sorted(found), stage.seconds_left()), f"beginning of {stage.key}")
        stored = {index for indices, _ in known for index in indices}
        missing = [index for index in range(len(items)) if index not in stored]
        ends = time.monotonic() + known[0][1]  # by the clock of the first
        count = stage.count(len(items), len(stored))
        failure = self._compute(stage, items, function, missing, found, ends, count)
        parts = self._exchange(found, f"end of {stage.key}", failure)
        everything = {index: part for share in parts for index, part in share.items()}
        if len(everything) < len(items):
            raise TimeBudgetSpent
        return [everything[index] for index in range(len(items))]

    def _compute(
        self, stage: Stage, items: Sequence[Any], function: Callable[[Any], Part], missing: list[int],
        found: dict[int, Part], ends: float, count: Any,
    ) -> Exception | None:  # fmt: skip
        """Compute and store parts as long as there are some, and give what went wrong."""
        counter = f"next/{self._meetings}"  # which all have come to, also where one has failed before a stage
        while missing and (place := self._add(counter, 1) - 1) < len(missing):
            count.update(len(items) - len(missing) + min(place, len(missing)) - count.n)
            if time.monotonic() > ends:
                self._add(counter, ALL)
                return None
            index = missing[place]
            try:
                found[index] = function(items[index])
                stage.keep(index, found[index])
            except Exception as error:
                self._add(counter, ALL)
                return error
        return None

    # -- agreement ------------------------------------------------------------------------------------------------

    def settle(self, decide: Callable[[], T]) -> T:
        """What the first process decides."""
        return self.together(decide, everywhere=False)

    def together(self, work: Callable[[], T], everywhere: bool = True) -> T:
        """What every process finds for itself; or what the first one finds."""
        found, failure = None, None
        try:
            if everywhere or self.leads:
                found = work()
        except Exception as error:
            if is_shared(error):  # the others have it already
                raise
            failure = error
        told = self._exchange(None if everywhere else found, "agreement", failure)
        return found if everywhere else told[0]  # type: ignore[return-value]

    def once(self, recall: Callable[[], T | None], work: Callable[[], T]) -> T:
        """What the first process recalls, else what all of them find."""
        known = self.settle(recall)
        return work() if known is None else known

    def gather(self, fact: T) -> list[T]:
        """What each process says."""
        return self._exchange(fact, "agreement")

    def close(self) -> None:
        """Leave the others; the first, which may serve the counters, leaves last."""
        with contextlib.suppress(Exception):
            left = self._add("left", 1)
            while self.leads and left < self.ranks:
                time.sleep(LONGEST)
                self._heartbeat.check()
                left = self._add("left", 0)
        self.abandon()

    def abandon(self) -> None:
        """Leave the others as they are."""
        self._heartbeat.stop()
        if not self._stuck:
            with contextlib.suppress(Exception):
                dist.destroy_process_group(self._group)

    # -- the exchange ---------------------------------------------------------------------------------------------

    def _exchange(self, value: Any, key: str, failure: Exception | None = None) -> list[Any]:
        """What each process has; where one has failed, its failure in all of them."""
        everything: list[Any] = [None] * self.ranks
        sent = (key, None if failure is None else packed(failure), value if failure is None else None)
        try:
            self._meet()
            self._gather(everything, sent)
        except (RuntimeError, ValueError, GenboundError) as error:  # torch's own are of the first two kinds
            lost = GenboundError(f"the ranks have lost each other ({first_line(error)}): {CONTINUES}")
            raise share(lost, self.rank < 2) from error  # the first or, where it is lost, the second says so
        failed = [(rank, chain) for rank, (_, chain, _) in enumerate(everything) if chain is not None]
        if failed:
            rank, chain = failed[0]
            own = failure is not None and rank == self.rank
            where = "" if len(failed) == self.ranks else f"{self._names[rank]}: "
            error = failure if own else unpacked(chain, where)
            raise share(error, self.leads)  # type: ignore[arg-type]
        if len({key for key, _, _ in everything}) > 1:
            raise share(_out_of_step([key for key, _, _ in everything], self._names), self.leads)
        return [value for _, _, value in everything]

    def _gather(self, everything: list[Any], sent: Any) -> None:
        """Let ``everything`` be what all have sent.

        Raises:
            RuntimeError: the connection to another one has ended.
            GenboundError: another one gives no sign of life any more.
        """
        failures: list[Exception] = []

        def exchange() -> None:
            try:
                dist.all_gather_object(everything, sent, group=self._group)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=exchange, daemon=True, name="genbound exchange")
        thread.start()
        while thread.is_alive():
            thread.join(LONGEST)
            try:
                if thread.is_alive():
                    self._heartbeat.check()
            except (RuntimeError, GenboundError):
                self._stuck = True
                atexit.register(_leave)  # Python would wait at its end for the exchange's own
                raise
        if failures:
            raise failures[0]

    def _meet(self) -> None:
        """Wait until all processes are here."""
        self._meetings += 1
        place, pause = f"meeting/{self._meetings}", SHORTEST
        there = self._add(place, 1)
        while there < self.ranks:
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST + self.ranks / 1000)
            self._heartbeat.check()
            there = self._add(place, 0)
        if self.leads and self._meetings > 2:  # all have left the one before the last
            self._store.delete_key(f"meeting/{self._meetings - 2}")

    def _add(self, counter: str, number: int) -> int:
        return self._store.add(counter, number)


def _leave() -> None:
    """End the process, which has said why."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(CUT_OFF)


def _group(store: Any, launch: Launch) -> Any:
    """A group for numpy arrays, beside the one that a script may have made for its own purposes."""
    if dist.is_initialized():
        return dist.new_group(backend="gloo", timeout=EXCHANGE)
    own = dist.PrefixStore("group", store)
    dist.init_process_group("gloo", store=own, rank=launch.rank, world_size=launch.ranks, timeout=EXCHANGE)
    return dist.group.WORLD


def _out_of_step(keys: list[str], names: list[str]) -> GenboundError:
    other = next(i for i, key in enumerate(keys) if key != keys[0])
    return GenboundError(
        f"the ranks are out of step: {names[0]} is at the {keys[0]} and {names[other]} at the {keys[other]}; start all "
        "of them anew with the same command, data and version"
    )
