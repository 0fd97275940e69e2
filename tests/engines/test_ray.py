"""The engine of a cluster: lost actors are replaced, and hear all that was told; with Ray itself where it is there."""

import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_ray import SmallRay
from stored_bytes import stored

from genbound.cli.main import main
from genbound.engines import ray_actors
from genbound.engines.base import Stage, TimeBudgetSpent
from genbound.engines.in_process import InProcess
from genbound.engines.open_engine import open_engine
from genbound.errors import GenboundError
from genbound.estimators import disk_table
from tests.attack.stored_run import arguments, write_files


def lead(monkeypatch, lose=lambda number: False, workers=2):
    small = SmallRay(lose)
    monkeypatch.setattr(ray_actors, "import_optional", lambda *_: small)
    monkeypatch.setattr(ray_actors, "let_another_tell", lambda: None)
    return ray_actors.Leader(None, workers, False), small


def square(item):
    return {"square": np.array([item**2])}


def values(parts):
    return [int(part["square"][0]) for part in parts]


def driver(engine, heard, function=square, stage=Stage("squares")):  # noqa: B008 (it is frozen)
    """Two stages, of which the second is planned by the first; what came before is recalled."""
    known = engine.once(lambda: None, lambda: sum(values(engine.map(stage, range(4), function))))
    sizes = engine.gather(3)
    parts = engine.map(stage, [known, known + 1, known + 2], function)
    parts[0]["square"] += 0  # a driver may write to its parts
    heard.append((known, min(sizes), engine.settle(lambda: "led"), values(parts)))


FOUND = (14, 3, "led", [14**2, 15**2, 16**2])


@pytest.mark.parametrize("lost", [(), (0,), (3,), (4, 5), (6,), (7, 8)])
def test_a_lost_actor_is_replaced(monkeypatch, capsys, lost):
    engine, small = lead(monkeypatch, lambda number: number in lost)
    heard, followed = [], []
    engine.employ(partial(driver, heard=followed))
    driver(engine, heard)
    begin = time.monotonic()
    while len(followed) < 2 and time.monotonic() - begin < 20:
        time.sleep(0.01)
    engine.close()
    assert heard == [FOUND] and followed == [FOUND] * 2 and not small.running
    assert small.started == 2 + len(lost) and capsys.readouterr().err.count("lost") == len(lost)


def test_a_part_that_ends_its_workers_ends_the_run(monkeypatch, capsys):
    engine, small = lead(monkeypatch, lambda number: number > 5)
    engine.employ(lambda engine: engine.map(Stage("squares"), range(50), square))
    with pytest.raises(GenboundError, match="lost with its worker 3 times"):
        engine.map(Stage("squares"), range(50), square)
    engine.abandon()


def test_workers_that_are_lost_as_they_load_are_replaced_for_long(monkeypatch, capsys):
    """Nobody else is held up, and no part is blamed."""
    engine, small = lead(monkeypatch)
    small.lose_loading = lambda number: 2 <= number < 12
    small.lose = lambda number: number == 3
    heard, followed = [], []
    engine.employ(partial(driver, heard=followed))
    driver(engine, heard)
    engine.close()
    assert heard == [FOUND] and small.started >= 4
    capsys.readouterr()


@pytest.mark.parametrize("loading", [True, False])
def test_workers_that_never_get_anything_done_end_the_run_in_one_line(monkeypatch, capsys, loading):
    monkeypatch.setattr(ray_actors, "LOSSES", 4)
    engine, small = lead(monkeypatch, lambda number: loading or number > 2)
    small.lose_loading = lambda number: True
    engine.employ(partial(driver, heard=[]))
    with pytest.raises(GenboundError, match="8 workers one after the other were lost before they got anything done"):
        driver(engine, [])
    engine.abandon()
    assert 2 + 8 <= small.started < 2 * (2 + 8)  # some more were lost before what was done at first


def test_a_worker_that_is_out_of_step_says_so(monkeypatch):
    engine, _ = lead(monkeypatch)
    engine.employ(lambda engine: engine.settle(lambda: 1))
    with pytest.raises(GenboundError, match="out of step"):
        engine.map(Stage("squares"), range(5), square)
    engine.abandon()


def test_failures_and_time_budgets_reach_all(monkeypatch):
    outcomes = []

    def work(engine):
        def attempt(stage, function):
            try:
                return values(engine.map(stage, [1, 2], function))
            except Exception as error:
                return type(error), str(error)

        def fails(item):
            raise torch.OutOfMemoryError(f"no room for {threading.current_thread().name}")

        over = Stage("", seconds_left=lambda: -1.0)
        first = attempt(Stage(""), fails)[0]
        outcomes.append((first, attempt(over, square)[0], attempt(Stage(""), square)))

    engine, _ = lead(monkeypatch)
    engine.employ(work)
    work(engine)
    begin = time.monotonic()
    while len(outcomes) < 3 and time.monotonic() - begin < 20:
        time.sleep(0.01)
    engine.close()
    assert outcomes == [(torch.OutOfMemoryError, TimeBudgetSpent, [1, 4])] * 3


def test_what_a_worker_cannot_load_is_said_with_its_place(monkeypatch):
    def work(engine):
        raise GenboundError("the file is not on this machine")

    engine, _ = lead(monkeypatch)
    engine.employ(work)
    with pytest.raises(GenboundError, match="a worker on .*: the file is not on this machine"):
        engine.gather(1)
    engine.abandon()


@pytest.mark.parametrize("kind", [Exception, RuntimeError, ConnectionError])
def test_a_cluster_that_does_not_start_is_said_in_one_line(monkeypatch, capsys, kind):
    def init(**_):
        raise kind("The current node timed out during startup.\nMore of it.")

    small = SmallRay()
    small.init = init
    monkeypatch.setattr(ray_actors, "import_optional", lambda *_: small)
    with pytest.raises(GenboundError) as error:
        ray_actors.Leader(None, 2, False)
    assert str(error.value) == "no Ray cluster at this machine: The current node timed out during startup."
    assert capsys.readouterr().err.count("Ray did not start in time") == ray_actors.STARTS - 1


@pytest.mark.parametrize("failure, starts", [("timed out during startup", 3), ("no such option", 1)])
def test_a_cluster_that_starts_too_slowly_is_started_again(monkeypatch, capsys, failure, starts):
    """What does not help to repeat is said at once."""
    tried = []

    def init(**_):
        tried.append(1)
        if len(tried) < 3:
            raise Exception(failure)

    small = SmallRay()
    small.init = init
    monkeypatch.setattr(ray_actors, "import_optional", lambda *_: small)
    if starts == 3:
        ray_actors.Leader(None, 2, False).close()
    else:
        with pytest.raises(GenboundError, match=failure):
            ray_actors.Leader(None, 2, False)
    assert len(tried) == starts
    capsys.readouterr()


@pytest.mark.parametrize(
    "name, workers, device, set_by_user, threads",
    [
        ("ray", 2, "cpu", False, 4), ("ray", None, "cpu", False, 1), ("ray", 20, "cpu", False, 1),
        ("ray", 2, "cpu", True, 3), ("ray://auto", None, "cpu", False, 1), ("ray://auto", 2, "cpu", True, 3),
        ("ray://auto", 2, "cuda", False, 3),
    ],
)  # fmt: skip
def test_actors_have_the_threads_of_their_cores(monkeypatch, name, workers, device, set_by_user, threads):
    """Of a machine with eight; in a cluster Ray gives each one core."""
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    else:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(ray_actors, "Leader", lambda *_: InProcess())
    torch.set_num_threads(3)
    with open_engine(name, workers, device):
        assert torch.get_num_threads() == threads


def test_without_ray_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    write_files(tmp_path)
    assert main(arguments(tmp_path, tmp_path / "out", "--engine", "ray")) == 2
    assert "genbound[ray]" in capsys.readouterr().err and not (tmp_path / "out").exists()


# -- Ray itself -------------------------------------------------------------------------------------------------------


def actors():
    """The processes of actors below this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::Actor" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_actors_of_ray_give_the_same_bytes_where_tables_lie_on_the_disk(tmp_path, capsys):
    """Every process imports the file of the model, which lowers the limit: tables of 100 numbers are large."""
    pytest.importorskip("ray")
    write_files(tmp_path)
    torch.set_num_threads(1)
    measures = "layer_curvature,relative_flatness,max_positive_trace"
    more = ["--measures", measures, "--set", "layer_curvature.curvature=ggn", "--set", "max_positive_trace.num_steps=3"]
    assert main(arguments(tmp_path, tmp_path / "small", *more)) == 0
    with open(tmp_path / "nets.py", "a") as file:
        file.write("\nfrom genbound.estimators import disk_table\ndisk_table.MOST = 100\n")
    usual = disk_table.MOST
    try:
        assert main(arguments(tmp_path, tmp_path / "one", *more)) == 0
        assert disk_table.MOST == 100
        assert main(arguments(tmp_path, tmp_path / "ray", "--engine", "ray", "--workers", "2", *more)) == 0
    finally:
        disk_table.MOST = usual
    assert stored(tmp_path / "one") == stored(tmp_path / "ray")
    one, small = (stored(tmp_path / name)[0]["quantities"] for name in ("one", "small"))
    assert all(one[name] == small[name] for name in measures.split(","))
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kills", [0, 1, 20])
def test_actors_of_ray_give_the_same_bytes(tmp_path, capsys, kills):
    """Killed at random moments, they are replaced while the run goes on."""
    pytest.importorskip("ray")
    write_files(tmp_path, pause=0.02)
    torch.set_num_threads(1)
    assert main(arguments(tmp_path, tmp_path / "one")) == 0
    rng, killed, number = random.Random(0), 0, 0
    while killed < kills or not number:
        ended = threading.Event()

        def kill(ended=ended):
            nonlocal killed
            while killed < kills and not ended.wait(rng.uniform(2, 6)):
                if there := actors():
                    os.kill(rng.choice(there), signal.SIGKILL)
                    killed += 1

        thread = threading.Thread(target=kill)
        thread.start()
        out = tmp_path / f"run{number}"
        assert main(arguments(tmp_path, out, "--engine", "ray", "--workers", "2")) == 0
        ended.set()
        thread.join()
        assert stored(tmp_path / "one") == stored(out)
        number += 1
    capsys.readouterr()
