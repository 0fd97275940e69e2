"""Three ranks on networks of their own, as three machines have: one is cut off, and nobody waits for ever."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from stored_bytes import stored

import genbound
from genbound.cli.main import main
from tests.attack.stored_run import arguments, write_files

RANKS, PATIENCE = 3, 10  # seconds
LINK = "link0"


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture
def networks():
    """Names of network namespaces on a bridge, which has one as well: no other network is touched."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip")
    mark = f"genbound{os.getpid()}"
    names, bridge = [f"{mark}r{rank}" for rank in range(RANKS)], f"{mark}b"
    try:
        for name in [bridge, *names]:
            if ip("netns", "add", name).returncode:
                pytest.skip("this user may not make network namespaces")
        steps = [["-n", bridge, "link", "add", "br0", "type", "bridge"], ["-n", bridge, "link", "set", "br0", "up"]]
        for rank, name in enumerate(names):
            port = f"port{rank}"
            steps += [
                ["-n", bridge, "link", "add", port, "type", "veth", "peer", "name", LINK, "netns", name],
                ["-n", bridge, "link", "set", port, "master", "br0", "up"],
                ["-n", name, "addr", "add", f"10.77.0.{rank + 1}/24", "dev", LINK],
                ["-n", name, "link", "set", LINK, "up"],
                ["-n", name, "link", "set", "lo", "up"],
            ]
        for step in steps:
            if (done := ip(*step)).returncode:
                pytest.skip(f"no bridge between namespaces here: {done.stderr.strip()}")
        yield names
    finally:
        for name in [bridge, *names]:
            ip("netns", "del", name)


def start(name, rank, folder, out):
    env = {
        **os.environ, "PYTHONPATH": str(Path(genbound.__file__).parent.parent), "OMP_NUM_THREADS": "1",
        "GENBOUND_PATIENCE": str(PATIENCE), "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500", "RANK": str(rank),
        "WORLD_SIZE": str(RANKS), "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": LINK,
    }  # fmt: skip
    command = ["ip", "netns", "exec", name, sys.executable, "-m", "genbound", *arguments(folder, out)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_rank_that_is_cut_off_ends_the_run_and_nothing_is_lost(tmp_path, networks, capfd):
    write_files(tmp_path, pause=0.02)
    torch.set_num_threads(1)
    assert main(arguments(tmp_path, tmp_path / "whole")) == 0
    out = tmp_path / "run"
    ranks = [start(name, rank, tmp_path, out) for rank, name in enumerate(networks)]
    try:
        begin = time.monotonic()
        while len(list(out.glob("parts/*-*/*"))) < 6:
            assert all(rank.poll() is None for rank in ranks), [r.communicate() for r in ranks if r.poll() is not None]
            assert time.monotonic() - begin < 300
            time.sleep(0.01)
        assert not ip("-n", networks[2], "link", "set", LINK, "down").returncode
        begin = time.monotonic()
        said = [rank.communicate(timeout=20 * PATIENCE)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert all(rank.returncode not in (0, None) for rank in ranks)
    assert "rank 2" in said[0] and not any("Traceback" in text for text in said), said
    assert not (out / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("parts/*/summary.json")}
    assert main(arguments(tmp_path, out)) == 0
    assert stored(out) == stored(tmp_path / "whole")
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in out.glob("parts/*/summary.json")}.items()
    capfd.readouterr()
