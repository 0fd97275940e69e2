"""The engine of a Ray cluster: one process leads, actors that hold the problem compute parts.

Each actor runs the whole driver, as the leader does, and follows it: where the driver asks for the parts of a stage,
the actor computes those that it is told to until the leader has all of them and sends them round. The leader stores
parts and decides. It keeps what it has told in order: an actor that takes the place of a lost one hears all of it
again, and is then where the others are.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from genbound.engines.base import Engine, Stage, T, TimeBudgetSpent
from genbound.engines.failures import is_shared, packed, share, unpacked
from genbound.engines.follower import ASK, COMPUTE, FAIL, GIVE, Follower
from genbound.errors import GenboundError, first_line, let_another_tell, tell
from genbound.estimators.measured import Part
from genbound.optional import import_optional

ATTEMPTS = 3  # at a part, before it is taken to be what ends the actors
LOSSES = 10  # actors for each worker, lost one after the other without anything done between, before the run ends
STARTS = 4  # attempts to start a cluster on this machine
LOOK = 0.5  # seconds between two looks at the time budget
Work = Callable[[Engine], object]


class Actor:
    """One worker, as Ray runs it: a thread that follows the driver, and the calls of the leader.

    Args:
        work: the whole run with the engine that it is given.
        folder: where the leader runs, for paths that are relative.
        ranks: how many processes take part.
    """

    def __init__(self, work: Work, folder: str, ranks: int):
        if os.path.isdir(folder):
            os.chdir(folder)
        let_another_tell()
        self._follower = Follower(work, ranks)

    def tell(self, kind: str, content: Any) -> None:
        """What the leader has decided, or the parts of a stage."""
        self._follower.hear(kind, content)

    def ready(self) -> None:
        """Come back when everything is loaded."""
        self._follower.ready()

    def ask(self, kind: str, content: Any) -> tuple[Any, list[BaseException] | None, str]:
        """A part, or a fact; what went wrong; and where."""
        answer, failure = self._follower.answer(kind, content)
        return answer, failure, socket.gethostname()


class Leader:
    """The process that leads: it computes no parts itself.

    Args:
        address: of a cluster; ``None`` starts one of this machine's cores.
        workers: how many actors; ``None`` means one for each core (each accelerator) there is.
        accelerators: each actor gets one of its own.
    """

    leads, stores = True, True

    def __init__(self, address: str | None, workers: int | None, accelerators: bool):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        self._ray = import_optional("ray", "--engine ray needs Ray", "genbound[ray]")
        given = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
        self._join(address, given)
        found = self._ray.cluster_resources()
        self.workers = workers or max(1, int(found.get("GPU" if accelerators else "CPU", 1)))
        self.ranks = self.workers + 1
        needs = {"num_cpus": 1, "num_gpus": 1 if accelerators else 0, "max_restarts": 0}
        self._kind = self._ray.remote(**needs)(Actor)
        self._work: Work | None = None
        self._actors: list[Any] = []
        self._told: list[tuple[str, Any]] = []
        self._losses = 0  # since a worker last got something done

    def _join(self, address: str | None, given: dict[str, Any]) -> None:
        """Start a cluster, or join one.

        Ray gives its own processes 30 seconds and no way to ask for more. On a busy machine they are ready when they
        are started again, from files that have been read; those of the first attempt end with this process.
        """
        for attempt in range(1, STARTS + 1):
            try:
                self._ray.init(log_to_driver=False, logging_level="ERROR", **given)
                return
            except Exception as error:  # Ray raises plain ones, too: where its own processes do not start in time
                if address or attempt == STARTS or "timed out" not in str(error).lower():
                    raise GenboundError(
                        f"no Ray cluster at {address or 'this machine'}: {first_line(error)}"
                    ) from error
                tell(f"Ray did not start in time: attempt {attempt + 1} of {STARTS}")
                self._ray.shutdown()

    def device(self, wanted: str) -> str:
        """The device as it is asked for; Ray shows each actor its own."""
        return wanted

    def employ(self, work: Work) -> None:
        """Let the actors begin.

        Args:
            work: the whole run with the engine that it is given: the same calls of it as this process makes.
        """
        self._work = work
        self._actors = [self._new() for _ in range(self.workers)]

    def _new(self) -> Any:
        """An actor that has heard all that was told."""
        actor = self._kind.remote(self._work, os.getcwd(), self.ranks)
        for kind, content in self._told:
            actor.tell.remote(kind, content)
        return actor

    def _replace(self, actor: Any) -> Any:
        """Another one in the place of a lost actor.

        Raises:
            GenboundError: they are all lost before they get anything done.
        """
        self._losses += 1
        with contextlib.suppress(Exception):
            self._ray.kill(actor)
        if self._losses > (most := LOSSES * self.workers):
            raise self._fail(_nothing_done(most))
        tell("a worker was lost; another one takes its place")
        self._actors[self._actors.index(actor)] = new = self._new()
        return new

    # -- the parts ------------------------------------------------------------------------------------------------

    def map(self, stage: Stage, items: Sequence[Any], function: Callable[[Any], Part]) -> list[Part]:
        """The parts of all items, in their order."""
        found = stage.read(range(len(items)))
        left = deque(index for index in range(len(items)) if index not in found)
        count = stage.count(len(items), len(found))
        for index, part in self._computed(stage, left):
            stage.keep(index, part)
            found[index] = part
            count.update()
        if len(found) < len(items):
            raise self._fail(TimeBudgetSpent())
        self._tell(GIVE, (stage.key, [found[index] for index in range(len(items))]))
        return [found[index] for index in range(len(items))]

    def _computed(self, stage: Stage, left: deque[int]) -> Any:
        """``(number, part)`` of the items as they come, until none is left or the time budget is spent."""
        idle, attempts = deque(self._actors), Counter[int]()
        running: dict[Any, tuple[Any, int | None]] = {}  # reference -> actor and part, None while it loads
        while left or any(index is not None for _, index in running.values()):
            while left and idle and stage.seconds_left() >= 0:
                actor, index = idle.popleft(), left.popleft()
                running[actor.ask.remote(COMPUTE, (stage.key, index))] = actor, index
            if not running:
                return
            ready, _ = self._ray.wait(list(running), num_returns=1, timeout=LOOK)
            for reference in ready:
                actor, index = running.pop(reference)
                try:
                    answer = self._ray.get(reference)
                except self._ray.exceptions.RayActorError:
                    if index is not None:
                        left.appendleft(index)
                        attempts[index] += 1
                        if attempts[index] == ATTEMPTS:
                            raise self._fail(_ends_workers(stage, index)) from None
                    new = self._replace(actor)
                    running[new.ready.remote()] = new, None
                    continue
                self._losses = 0
                if index is None:
                    idle.append(actor)
                    continue
                part, failure, host = answer
                if failure is not None:
                    raise self._fail(unpacked(failure, f"a worker on {host}: "))
                idle.append(actor)
                yield index, part

    def _fail(self, error: BaseException) -> BaseException:
        """A failure of a stage, for all."""
        self._tell(FAIL, packed(error))
        return share(error, speaks=True)

    def _tell(self, kind: str, content: Any) -> None:
        reference = self._ray.put(content)
        self._told.append((kind, reference))
        for actor in self._actors:
            actor.tell.remote(kind, reference)

    # -- agreement ------------------------------------------------------------------------------------------------

    def settle(self, decide: Callable[[], T]) -> T:
        """What is decided here, for all."""
        found = decide()
        self._tell(GIVE, found)
        return found

    def together(self, work: Callable[[], T]) -> T:
        """What is found here; the actors find their own. A failure is theirs too."""
        try:
            return work()
        except Exception as error:
            raise error if is_shared(error) else self._fail(error) from error.__cause__

    def once(self, recall: Callable[[], T | None], work: Callable[[], T]) -> T:
        """What is known, or what all of them find together; who comes later need not find it again."""
        before = len(self._told)
        known = self.settle(recall)
        found = work() if known is None else known
        self._told[before:] = [(GIVE, self._ray.put(found))]
        return found

    def gather(self, fact: T) -> list[T]:
        """What each process says."""
        facts = [fact]
        for actor in list(self._actors):
            while True:
                try:
                    said, failure, host = self._ray.get(actor.ask.remote(ASK, None))
                    break
                except self._ray.exceptions.RayActorError:
                    actor = self._replace(actor)
            self._losses = 0
            if failure is not None:
                raise self._fail(unpacked(failure, f"a worker on {host}: "))
            facts.append(said)
        self._tell(GIVE, facts)
        return facts

    def close(self) -> None:
        """Let the actors go, and the cluster where it was started here."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._ray.shutdown()

    abandon = close


def _nothing_done(number: int) -> GenboundError:
    return GenboundError(
        f"{number} workers one after the other were lost before they got anything done, for want of memory perhaps: "
        "give fewer --workers; with --out, what was finished is kept and the same command continues"
    )


def _ends_workers(stage: Stage, index: int) -> GenboundError:
    return GenboundError(
        f"part {stage.first + index} of {stage.title} was lost with its worker {ATTEMPTS} times, for want of memory "
        "perhaps: give a smaller --batch-size or fewer --workers; with --out, what was finished is kept and the same "
        "command continues"
    )
