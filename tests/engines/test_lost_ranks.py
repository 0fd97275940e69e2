"""Ranks that are killed: the run ends clearly or starts again, and its finished parts lead to the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import free_port, in_ranks
from stored_bytes import stored

import genbound
from genbound.cli.main import main
from tests.attack.stored_run import arguments, write_files


def finished(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("parts/*/summary.json")}


def killing(rank, moment):
    def kill(children):
        time.sleep(moment)
        os.kill(children[rank], signal.SIGKILL)

    return kill


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_rank_is_killed_at_random_moments(tmp_path, capfd, monkeypatch, kills):
    monkeypatch.setenv("GENBOUND_PATIENCE", "1")
    write_files(tmp_path)
    torch.set_num_threads(1)
    assert main(arguments(tmp_path, tmp_path / "whole")) == 0
    begin = time.monotonic()
    assert in_ranks(2, lambda rank: main(arguments(tmp_path, tmp_path / "two")), tmp_path) == [0, 0]
    takes, rng, killed, number = time.monotonic() - begin, random.Random(1), 0, 0
    while killed < kills:
        out, before, codes = tmp_path / f"run{number}", {}, []
        while killed < kills and codes != [0, 0]:
            kill = killing(rng.randrange(2), rng.uniform(0, takes))
            begin = time.monotonic()
            codes = in_ranks(2, lambda rank, out=out: main(arguments(tmp_path, out)), tmp_path, kill)
            if codes == [0, 0]:  # the first runs import what later ones have
                takes = min(takes, time.monotonic() - begin)
            assert set(codes) <= {0, 2, signal.SIGKILL} and codes.count(signal.SIGKILL) <= 1
            now = finished(out)
            assert before.items() <= now.items()  # nothing that was finished is lost, or measured again
            killed, before = killed + (signal.SIGKILL in codes), now
        assert in_ranks(2, lambda rank, out=out: main(arguments(tmp_path, out)), tmp_path) == [0, 0]
        assert stored(out) == stored(tmp_path / "whole") and not list(out.glob("**/.*"))
        number += 1
    assert "Traceback" not in capfd.readouterr().err


def torchrun(folder, out, *more):
    root = str(Path(genbound.__file__).parent.parent)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    return subprocess.Popen(
        [*launcher, str(free_port()), *more, "-m", "genbound", *arguments(folder, out)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def wait_for_parts(run, out, num):
    begin = time.monotonic()
    while len(list(out.glob("parts/*-*/*"))) < num:
        assert run.poll() is None and time.monotonic() - begin < 120
        time.sleep(0.01)


@pytest.mark.slow
def test_torchrun_restarts_from_the_finished_parts(tmp_path, capfd):
    write_files(tmp_path, pause=0.02)
    torch.set_num_threads(1)
    assert main(arguments(tmp_path, tmp_path / "whole")) == 0
    out = tmp_path / "run"
    run = torchrun(tmp_path, out, "--max-restarts", "1")
    wait_for_parts(run, out, 8)
    kept = finished(out)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    workers = [int(c) for c in children if b"evaluate" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    printed, _ = run.communicate(timeout=300)
    assert run.returncode == 0 and printed.count("# ") == 1
    assert stored(out) == stored(tmp_path / "whole") and kept.items() <= finished(out).items()
    assert not list(out.glob("**/.*"))


@pytest.mark.slow
def test_a_run_that_is_told_to_end_ends_and_is_continued(tmp_path, capfd):
    write_files(tmp_path, pause=0.02)
    torch.set_num_threads(1)
    assert main(arguments(tmp_path, tmp_path / "whole")) == 0
    out = tmp_path / "run"
    run = torchrun(tmp_path, out)
    wait_for_parts(run, out, 8)
    begin = time.monotonic()
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=300)
    assert run.returncode != 0 and time.monotonic() - begin < 25 and "the same command continues" in said
    assert not (out / "results.json").exists() and not (out / ".lock").exists()
    again = torchrun(tmp_path, out)
    again.communicate(timeout=300)
    assert again.returncode == 0 and stored(out) == stored(tmp_path / "whole")
