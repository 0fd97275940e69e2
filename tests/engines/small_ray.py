"""What the engine asks of Ray, by threads of this process: actors that can be lost at a chosen call."""

import itertools
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from types import SimpleNamespace


class RayActorError(Exception):
    pass


class SmallRay:
    """``lose(number of the question) -> bool`` says which question ends the actor that it was put to.

    ``lose_loading(number of the actor) -> bool`` says which one is lost before it is ready.
    """

    exceptions = SimpleNamespace(RayActorError=RayActorError)

    def __init__(self, lose=lambda number: False):
        self.lose, self.started, self.running, self.asked = lose, 0, False, itertools.count()
        self.lose_loading = lambda number: False

    def init(self, **_):
        self.running = True

    def shutdown(self):
        self.running = False

    def cluster_resources(self):
        return {"CPU": 3.0}

    def put(self, value):
        found = Future()
        found.set_result(value)
        return found

    def get(self, reference):
        return reference.result(timeout=60)

    def wait(self, references, num_returns, timeout):
        done, waiting = wait_for(references, timeout, FIRST_COMPLETED)
        return list(done)[:num_returns], list(waiting)

    def kill(self, actor):
        actor.dead = True

    def remote(self, **_):
        return lambda kind: SimpleNamespace(remote=lambda *given: Handle(self, kind, given))


class Handle:
    def __init__(self, ray, kind, given):
        self.ray, self.dead = ray, False
        self.number = ray.started
        ray.started += 1
        self.pool = ThreadPoolExecutor(1)
        self.actor = self.pool.submit(kind, *given)

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *given: self.pool.submit(self._call, method, given))

    def _call(self, method, given):
        self.dead = self.dead or (method == "ask" and self.ray.lose(next(self.ray.asked)))
        self.dead = self.dead or (method == "ready" and self.ray.lose_loading(self.number))
        if self.dead:
            raise RayActorError
        given = [value.result() if isinstance(value, Future) else value for value in given]
        return getattr(self.actor.result(), method)(*given)
