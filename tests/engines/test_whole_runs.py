"""Trainings over the seam: several processes share the candidates, each is trained once, and the same is found."""

import json
import os

import numpy as np
import pytest
import torch
from ranks import in_ranks
from safetensors.torch import load_file, save_file
from torch import nn

from genbound.cli.main import main
from genbound.engines.in_process import InProcess
from genbound.engines.launch import launched
from genbound.engines.whole_runs import alone, share_runs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="needs accelerate")
    (tmp_path / "nets.py").write_text(NET)
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=stream)
    y = (x[:, :3] + 0.3 * torch.randn(60, 3, generator=stream)).argmax(1)
    np.savez(tmp_path / "train.npz", x=x.numpy(), y=y.numpy())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict(), tmp_path / "init.safetensors"
        )
    return tmp_path


def arguments(folder, out, *more):
    return [
        "finetune", str(folder / "init.safetensors"), "--model", f"{folder / 'nets.py'}:make", "--data",
        f"npz:{folder / 'train.npz'}", "--epochs", "2", "--batch-size", "16", "--lr", "0.02", "--out", str(out), *more,
    ]  # fmt: skip


def record(out):
    """All of the record but what it took."""
    whole = json.loads((out / "run.json").read_text())
    return {key: value for key, value in whole.items() if key not in ("seconds", "history")}


def alike(one, other):
    a, b = (load_file(out / "finetuned" / "model.safetensors") for out in (one, other))
    return record(one) == record(other) and all(torch.equal(a[name], b[name]) for name in a)


def test_ranks_share_the_radii(folder, capfd):
    """Each candidate is trained by one rank, and none takes the others for companions of its training."""
    options = ["--radius", "auto", "--noise", "symmetric:0.2", "--confusion", "known"]
    one, two = folder / "one", folder / "two"
    torch.set_num_threads(1)
    assert main(arguments(folder, one, *options)) == 0
    said = capfd.readouterr().out

    def work(rank):
        from genbound.finetune import trainer

        trained, own = [], trainer.FineTuner.train

        def train(self, *given, **more):
            assert self.args.world_size == 1
            trained.append(self.args.output_dir)
            return own(self, *given, **more)

        trainer.FineTuner.train = train
        status = main(arguments(folder, two, *options))
        return status, trained, os.environ["WORLD_SIZE"]

    found = in_ranks(2, work, folder)
    assert all(not isinstance(rank, Exception) for rank in found), found
    assert [(status, size) for status, _, size in found] == [(0, "2")] * 2
    every = [path.removeprefix(str(two)) for _, trained, _ in found for path in trained]
    radii = [f"/search/{radius}pc/checkpoints" for radius in (30, 10, 3, 1)]
    assert sorted(every) == sorted([*radii, "/checkpoints"])
    assert all(trained for _, trained, _ in found)
    assert alike(one, two) and capfd.readouterr().out.replace("two", "one") == said
    assert main(arguments(folder, two, *options)) == 0  # it is found again, by one process


@pytest.mark.slow
def test_ranks_share_the_candidates_of_a_certificate(folder, capfd):
    one, two = folder / "one", folder / "two"
    torch.set_num_threads(1)
    assert main(arguments(folder, one, "--certify")) == 0
    assert in_ranks(2, lambda rank: main(arguments(folder, two, "--certify")), folder) == [0, 0]
    assert alike(one, two) and record(two)["certificate"]["tried"]
    assert capfd.readouterr().out


def test_one_training_is_shared_by_nobody(folder, capsys):
    assert main(arguments(folder, folder / "out", "--engine", "ray")) == 2
    assert "--engine ray shares the trainings of --radius auto" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_one_training_is_refused_in_several_processes(folder, capsys, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(arguments(folder, folder / "out")) == 2
    error = capsys.readouterr().err
    assert "2 processes were started together, and this is one training" in error and len(error.splitlines()) == 1
    assert not (folder / "out").exists()
    assert main(arguments(folder, folder / "own", "--engine", "local")) == 0


def test_records_come_back_as_they_were():
    given = {"a": [1, 2.5e-17, None, float("inf")], "b": {"c": "ü"}}
    assert share_runs(InProcess(), "runs", [1, 2], lambda i: {**given, "i": i}) == [
        {**given, "i": 1},
        {**given, "i": 2},
    ]


def test_a_process_is_alone_for_a_while(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with alone():
        assert launched() is None
    assert launched().rank == 1
