"""Memory that runs out between two stages, in one process alone: all begin the quantity anew, in step."""

import threading
import time

import numpy as np
import pytest
from ranks import in_ranks
from small_ray import SmallRay

from genbound.engines import ray_actors
from genbound.engines.base import Stage
from genbound.engines.launch import launched
from genbound.errors import GenboundError
from genbound.evaluation import out_of_memory


def measured(engine, fails, computed):
    """Two stages of parts that look alike, with arithmetic between that runs out of memory once."""

    def stage(name, more):
        def part(item):
            time.sleep(0.02)
            computed.append(name)
            return {"value": np.array(more + item)}

        return [int(part["value"]) for part in engine.map(Stage(name, key=name), range(6), part)]

    def measure():
        first = stage("first", 0)
        if fails():
            raise MemoryError("out of memory")
        return first, stage("second", 100)

    return out_of_memory.with_less_memory(None, "a quantity", lambda: engine.together(measure))


FOUND = (list(range(6)), list(range(100, 106)))


@pytest.mark.parametrize("leader", [True, False])
def test_actors_of_ray_stay_in_step(monkeypatch, leader):
    monkeypatch.setattr(ray_actors, "import_optional", lambda *_: SmallRay())
    monkeypatch.setattr(ray_actors, "let_another_tell", lambda: None)
    monkeypatch.setattr(out_of_memory, "_halve", lambda problem, name, error: None)
    failed, lock, followed = [], threading.Lock(), []

    def work(engine):
        def fails():
            with lock:
                return engine.leads == leader and not failed and not failed.append(True)

        followed.append(measured(engine, fails, []))
        return followed[-1]

    engine = ray_actors.Leader(None, 2, False)
    engine.employ(work)
    assert work(engine) == FOUND
    begin = time.monotonic()
    while len(followed) < 3 and time.monotonic() - begin < 20:
        time.sleep(0.01)
    engine.close()
    assert followed == [FOUND] * 3


def test_an_actor_of_ray_computes_no_part_of_another_stage(monkeypatch):
    monkeypatch.setattr(ray_actors, "import_optional", lambda *_: SmallRay())
    monkeypatch.setattr(ray_actors, "let_another_tell", lambda: None)
    engine = ray_actors.Leader(None, 2, False)
    engine.employ(lambda engine: engine.map(Stage("", key="first"), range(3), lambda item: {}))
    with pytest.raises(GenboundError, match="it is at the first, its leader at the second"):
        engine.map(Stage("", key="second"), range(3), lambda item: {})
    engine.abandon()


def test_ranks_go_on_sharing_the_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(out_of_memory, "_halve", lambda problem, name, error: None)

    def work(rank):
        from genbound.engines.distributed import Distributed

        mine, failed, computed = Distributed(launched()), [], []
        found = measured(mine, lambda: rank == 1 and not failed and not failed.append(True), computed)
        again = measured(mine, lambda: False, computed)
        mine.close()
        return found, again, computed

    found = in_ranks(2, work, tmp_path)
    assert all(rank[:2] == (FOUND, FOUND) for rank in found)
    assert sorted(found[0][2] + found[1][2]) == ["first"] * 18 + ["second"] * 12  # each once, but for the first attempt
    assert all(len(rank[2]) >= 10 for rank in found)
