"""Who is started alone and who with others: the variables of torchrun and of Slurm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import genbound
from genbound.engines.launch import first_host, launched
from genbound.engines.open_engine import open_engine
from genbound.errors import GenboundError
from tests.attack.stored_run import arguments, write_files

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
JOB = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "gpu[03-05,09],cpu1"}


def test_torchrun_and_slurm_say_who_a_process_is():
    found = launched(TORCHRUN)
    assert (found.rank, found.ranks, found.local_rank) == (3, 4, 1)
    found = launched({**JOB, **STEP})
    assert (found.rank, found.ranks, found.local_rank) == (2, 3, 0)
    assert found.environment["MASTER_ADDR"] == "gpu03" and 20000 <= int(found.environment["MASTER_PORT"]) < 40000
    assert launched({**JOB, **STEP, "SLURM_STEP_ID": "1"}).environment != found.environment
    assert launched({**JOB, **STEP, "MASTER_ADDR": "there"}).environment["MASTER_ADDR"] == "there"


@pytest.mark.parametrize("alone", [{}, {**TORCHRUN, "WORLD_SIZE": "1"}, JOB, {"RANK": "0", "WORLD_SIZE": "2"}])
def test_one_process_and_a_batch_script_are_alone(alone):
    assert launched(alone) is None


def test_numbers_that_are_none_are_refused():
    with pytest.raises(GenboundError, match="whole numbers"):
        launched({**TORCHRUN, "RANK": "first"})


@pytest.mark.parametrize(
    ("nodes", "host"), [("gpu7", "gpu7"), ("a,b", "a"), ("n[08-12]", "n08"), ("n[3,7]-x,m", "n3-x"), ("r1-n2", "r1-n2")]
)
def test_the_first_host_of_a_list(nodes, host):
    assert first_host(nodes) == host


def test_a_device_of_its_own():
    assert launched(TORCHRUN).device("cpu") == "cpu" and launched(TORCHRUN).device("cuda:0") == "cuda:0"
    assert launched(TORCHRUN).device("cuda").startswith("cuda:")


def test_an_engine_that_is_not_there_is_refused(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, words in (("dask", "use one of auto"), ("torchrun", "srun")):
        with pytest.raises(GenboundError, match=words), open_engine(name):
            pass
    with open_engine() as engine:
        assert engine.leads and engine.ranks == 1 and engine.device("cuda") == "cuda"
    for name, workers, words in (("auto", 2, "is for --engine ray"), ("ray", 0, "at least 1")):
        with pytest.raises(GenboundError, match=words), open_engine(name, workers):
            pass


def test_one_process_needs_no_other_engine(tmp_path):
    """Neither is imported, nor is a group of torch.distributed made."""
    write_files(tmp_path)
    code = (
        "import sys; from genbound.cli.main import main; status = main(sys.argv[1:]); import torch.distributed as d\n"
        "loaded = [name for name in sys.modules if name.startswith(('genbound.engines.', 'ray'))]\n"
        "print(status, d.is_initialized(), *sorted(loaded), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments(tmp_path, tmp_path / "out", "--quiet", "--measures", "losses")]
    env = {**os.environ, "PYTHONPATH": str(Path(genbound.__file__).parent.parent)}
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        env.pop(name, None)
    said = subprocess.run(command, env=env, capture_output=True, text=True).stderr
    ours = ["base", "failures", "in_process", "launch", "open_engine", "run_directory"]
    assert said.split() == ["0", "False", *(f"genbound.engines.{name}" for name in ours)], said
