"""Several processes on one directory, directories that cannot be written, and disks that fill up."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from stored_run import arguments, start, write_files

from genbound.cli.main import main
from genbound.engines import run_directory
from genbound.engines.run_directory import writing_to
from genbound.errors import GenboundError
from genbound.evaluation import store
from genbound.evaluation.stage import open_store


@pytest.fixture
def folder(tmp_path):
    write_files(tmp_path)
    return tmp_path


def quantities(out):
    return json.loads((out / "results.json").read_text())["quantities"]


@pytest.mark.parametrize("num", [2, pytest.param(16, marks=pytest.mark.slow)])
def test_of_several_runs_one_writes_and_the_others_say_so(folder, num):
    out = folder / "run"
    runs = [start(folder, out) for _ in range(num)]
    ended = [(run.communicate(), run.returncode) for run in runs]
    assert {code for _, code in ended} <= {0, 2} and 0 in {code for _, code in ended}
    for (_, err), code in ended:
        assert "Traceback" not in err and "unexpected" not in err
        assert code == 0 or f"another run is writing to {out}" in err.strip().splitlines()[-1]
    assert main(arguments(folder, folder / "alone")) == 0
    assert quantities(out) == quantities(folder / "alone") and not (out / ".lock").exists()


def test_the_lock_names_who_holds_it_and_ends_with_its_process(folder, capsys):
    write_files(folder, pause=0.02)
    out = folder / "run"
    run, begin = start(folder, out), time.monotonic()
    while not list(out.glob("parts/*-*/*")):
        assert run.poll() is None and time.monotonic() - begin < 60
        time.sleep(0.01)
    assert main(arguments(folder, out)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"process {run.pid} on " in line and "--out" in line
    run.send_signal(signal.SIGKILL)
    run.communicate()
    write_files(folder)
    assert (out / ".lock").exists() and main(arguments(folder, out)) == 0
    assert not (out / ".lock").exists()


def test_threads_do_not_share_a_directory_and_a_run_may_ask_twice(tmp_path):
    refused = []

    def other():
        try:
            with writing_to(tmp_path):
                pass
        except GenboundError as error:
            refused.append(str(error))

    with writing_to(tmp_path), writing_to(str(tmp_path)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another run is writing" in refused[0]
    with writing_to(tmp_path):
        pass


def test_a_lock_that_was_taken_away_is_made_anew(tmp_path):
    """Who removes the file while others have it open leaves them a lock on nothing."""
    with writing_to(tmp_path):
        (tmp_path / ".lock").unlink()
        with writing_to(tmp_path / "inside"):
            pass
    with writing_to(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith("{")


@pytest.mark.parametrize("broken", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_the_run_says_so_and_goes_on(tmp_path, monkeypatch, broken, capsys):
    def flock(*_):
        raise OSError(broken, os.strerror(broken))

    monkeypatch.setattr(run_directory.fcntl, "flock", flock)
    with writing_to(tmp_path):
        assert f"{tmp_path} cannot be locked" in capsys.readouterr().err
    monkeypatch.setattr(run_directory, "fcntl", None)
    with writing_to(tmp_path):
        assert "no file locks" in capsys.readouterr().err


def test_without_locks_nobody_takes_away_what_another_is_writing(tmp_path):
    import numpy as np

    from genbound.estimators.measured import Measured

    one, living = open_store(tmp_path, "losses", "digest"), os.getppid()
    one.save_part("train-0", {"x": np.ones(1)})
    mine, dead = one.folder / f".train-1.npz.{living}", one.folder / ".train-2.npz.999999999"
    mine.touch(), dead.touch()
    one.save_measured(Measured({"a": 1}), 0.0)
    assert mine.exists() and not dead.exists() and not (one.folder / "train-0.npz").exists()
    assert one.part("train-0") is None and one.measured()[0].summary == {"a": 1}


def test_a_failed_run_leaves_no_directory(folder, capsys):
    assert (
        main(["evaluate", str(folder / "absent"), str(folder / "init.safetensors"), "--out", str(folder / "a/b")]) == 2
    )
    assert not (folder / "a/b").exists()
    capsys.readouterr()


# -- what the system does not take ------------------------------------------------------------------------------------


def one_line(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("genbound: error")]
    assert len(lines) == 1 and "unexpected" not in lines[0]
    return lines[0]


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_loaded(folder, capsys, monkeypatch):
    monkeypatch.setattr("genbound.checkpoints.architecture.load_pair", lambda *_: pytest.fail("it was loaded"))
    (folder / "a_file").touch()
    assert main(arguments(folder, folder / "a_file")) == 2
    assert "is a file" in one_line(capsys)
    assert main(arguments(folder, folder / "a_file" / "run")) == 2
    assert "Not a directory" in one_line(capsys)

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for change, words in ((denied, "Permission denied"), (full, "No space left on device")):
        monkeypatch.setattr(run_directory.os, "fsync", change)
        assert main(arguments(folder, folder / "run")) == 2
        assert words in one_line(capsys)


def test_a_full_disk_is_noticed_before_anything_is_measured(folder):
    """A limit on the size of files stands for a full disk."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from genbound.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments(folder, folder / "run")], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert run.returncode == 2 and run.stdout == ""
    (line,) = run.stderr.strip().splitlines()
    assert "cannot be written" in line and "make room" in line and resource.RLIMIT_FSIZE is not None


def test_a_disk_that_fills_up_keeps_what_was_finished(folder, capsys, monkeypatch):
    out, written, write = folder / "run", [], store.write_part

    def fills_up(path, *more):
        if len(written) == 7:
            full()
        written.append(path)
        write(path, *more)

    monkeypatch.setattr(store, "write_part", fills_up)
    assert main(arguments(folder, out)) == 2
    assert "No space left on device" in one_line(capsys)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("parts/*/summary.json")}
    assert kept
    monkeypatch.undo()
    assert main(arguments(folder, out)) == 0 and main(arguments(folder, folder / "alone")) == 0
    assert quantities(out) == quantities(folder / "alone")
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in out.glob("parts/*/summary.json")}.items()
    capsys.readouterr()


def test_results_that_cannot_be_written_are_shown(folder, capsys, monkeypatch):
    monkeypatch.setattr("genbound.results.results.write_json", full)
    assert main(arguments(folder, folder / "run")) == 2
    shown = capsys.readouterr()
    assert "hessian_distance" in shown.out and "No space left" in shown.err
    monkeypatch.undo()
    assert main(arguments(folder, folder / "run")) == 0
    capsys.readouterr()


def test_temporary_files_of_other_machines_live_for_an_hour(tmp_path):
    """Whether their processes live cannot be seen; nobody takes away what somebody may be writing."""
    from genbound.files import is_being_written, remove_left_over, temporary_name

    mine, again = temporary_name(tmp_path / "results.json"), temporary_name(tmp_path / "results.json")
    theirs = tmp_path / ".results.json.node7-0123abcd.12"
    for path in (mine, theirs):
        path.touch()
    assert mine != again and is_being_written(theirs) and not is_being_written(mine)
    remove_left_over(tmp_path, "results.json")
    assert theirs.exists() and not mine.exists()
    os.utime(theirs, (0, 0))
    remove_left_over(tmp_path, "results.json")
    assert not theirs.exists() and not is_being_written(theirs)
