"""A run that is killed at random moments, again and again: nothing that was finished is lost, no number changes."""

import json
import os
import random
import signal
import time

import pytest
from stored_run import arguments, write_files

from genbound.cli.main import main


def run_until(moment, folder, out):
    """Run in a child that is killed after so many seconds; ``True`` if it had ended before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2)
            code = main(arguments(folder, out))
        finally:
            os._exit(code)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)  # one that has ended is still there to be asked: its status stays as it was
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == 0


def finished(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("parts/*/summary.json")}


def stored(out):
    content = json.loads((out / "results.json").read_text())
    return content["quantities"], content["bounds"]


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, capsys, kills):
    write_files(tmp_path)
    begin = time.monotonic()
    assert main(arguments(tmp_path, tmp_path / "whole")) == 0
    takes, rng = time.monotonic() - begin, random.Random(0)
    killed, middle, number = 0, 0, 0
    while killed < kills:
        out, before = tmp_path / f"run{number}", {}
        ended = False
        while not ended and killed < kills:
            ended = run_until(rng.uniform(0, 0.6 * takes), tmp_path, out)
            now = finished(out)
            assert before.items() <= now.items()  # nothing that was finished is lost, or measured again
            killed, middle, before = killed + (not ended), middle + (not ended and out.exists()), now
        assert main(arguments(tmp_path, out)) == 0
        assert stored(out) == stored(tmp_path / "whole")
        assert before.items() <= finished(out).items() and not list(out.glob("**/.*"))
        number += 1
    assert middle > kills // 4  # moments that matter
    capsys.readouterr()
