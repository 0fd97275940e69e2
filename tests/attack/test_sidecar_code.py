"""``genbound.yaml`` comes with the checkpoint: code that it names runs only where the user has asked for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import genbound
from genbound.checkpoints.pair_spec import PairSpec
from genbound.checkpoints.sidecar import copy_sidecar, write_sidecar
from genbound.checkpoints.trust import code_in
from genbound.cli.main import main
from genbound.data import Reader, load_data
from genbound.errors import GenboundError
from genbound.evaluation.loading import EvaluationSpec
from genbound.finetune.start import build_start

NET = "import torch\nopen('ran', 'w').close()\ndef f(*given):\n    return torch.nn.Linear(2, 2)\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A downloaded checkpoint with a Python file beside it; ``ran`` appears where that file is run."""
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Linear(2, 2).state_dict(), "a.pt")
    np.savez("train.npz", x=np.ones((4, 2), np.float32), y=np.array([0, 1, 0, 1]))
    Path("x.py").write_text(NET)
    return tmp_path


def ran() -> bool:
    return Path("ran").exists()


NAMED = [
    "data: x.py:f", "test_data: x.py:f\ndata: npz:train.npz\nmodel: hf", "model: x.py:f", "model: os:getcwd",
    "loss: x.py:f", "loss: x:f", "data: os:getcwd", "data: x:f", "data: x.py:f?samples=2", "model: a/../x.py:f",
    "model: ./x.py:f", "data: function:f", "loss: x?.py:f", "model: this:d", "test-data: x.py:f",
    "model: 'x.py :f'", "model: hf.py:f", "data: npz.py:f",
]  # fmt: skip


@pytest.mark.parametrize("content", NAMED)
def test_code_in_a_downloaded_sidecar_is_refused(content, folder, capsys):
    Path("genbound.yaml").write_text(content)
    for command in ("inspect", "evaluate"):
        assert main([command, "a.pt", "a.pt"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "--trust-remote-code" in said and "would run code" in said, said
    for ask in (
        lambda: genbound.load("a.pt", "a.pt"),
        lambda: genbound.load(folder, folder / "a.pt"),
        lambda: EvaluationSpec("a.pt").completed(),
    ):
        with pytest.raises(GenboundError, match="trust_remote_code=True"):
            ask()
    assert not ran()


def test_the_start_of_a_fine_tuning_is_refused_likewise(folder, capsys):
    Path("genbound.yaml").write_text("model: x.py:f")
    with pytest.raises(GenboundError, match="trust_remote_code=True"):
        build_start("a.pt", None, 2, None, False, 0)
    assert main(["finetune", "a.pt", "--data", "npz:train.npz", "--out", "run"]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err and not ran()
    assert build_start("a.pt", None, 2, None, False, 0, trust_remote_code=True).model is not None and ran()


def test_the_flag_or_the_same_words_allow_it(folder):
    Path("genbound.yaml").write_text("model: x.py:f\n")
    given = ["evaluate", "a.pt", "a.pt", "--measures", "displacement_norm"]
    assert main(given) == 2 and not ran()
    assert main([*given, "--model", "x.py:f"]) == 0 and ran()
    Path("ran").unlink()
    assert main([*given, "--trust-remote-code"]) == 0 and ran()


@pytest.mark.parametrize("spec", ["npz:a", "csv:a?text=x:y&label=z", "hf:a/b", "imagefolder:a", "run:.."])
def test_what_is_only_read_is_no_code(spec):
    assert not code_in({"data": spec, "test_data": spec, "model": "timm:resnet18", "loss": "cross_entropy"})


# -- what the user has written down -----------------------------------------------------------------------------------


def test_what_save_spec_wrote_goes_on_working(folder):
    genbound.save_spec("a.pt", model="x.py:f", init="a.pt")
    assert PairSpec("a.pt").completed().model == "x.py:f"
    code = "import genbound; print(genbound.load('a.pt').params.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0  # another process


def test_not_when_the_code_or_the_place_is_another(folder):
    genbound.save_spec("a.pt", model="x.py:f")
    Path("x.py").write_text(NET + "# changed\n")
    with pytest.raises(GenboundError, match="would run code"):
        PairSpec("a.pt").completed()
    Path("x.py").write_text(NET)
    assert PairSpec("a.pt").completed().model
    Path("copy").mkdir()
    for name in ("x.py", "a.pt", "genbound.yaml"):
        Path("copy", name).write_bytes(Path(name).read_bytes())
    with pytest.raises(GenboundError, match="would run code"):
        PairSpec("copy/a.pt").completed()


def test_saving_more_settings_trusts_no_earlier_ones(folder):
    Path("genbound.yaml").write_text("data: x.py:g\n")
    genbound.save_spec("a.pt", model="x.py:f")
    with pytest.raises(GenboundError, match=r"data: .*x\.py:g") as refused:
        EvaluationSpec("a.pt").completed()
    assert "model" not in str(refused.value)


def test_a_copy_for_a_checkpoint_carries_no_more_trust(folder):
    Path("genbound.yaml").write_text(f"data: {folder}/x.py:g\n")
    genbound.save_spec(folder, model=f"{folder}/x.py:f")
    Path("checkpoint-1").mkdir()
    copy_sidecar(folder, Path("checkpoint-1"))
    assert PairSpec("checkpoint-1").completed().model
    with pytest.raises(GenboundError, match="would run code"):
        EvaluationSpec("checkpoint-1").completed()


def test_a_command_writes_nothing_outside(folder):
    write_sidecar("a.pt", model="x.py:f")
    assert PairSpec("a.pt").completed().model  # this process has named it
    assert not any(Path(os.environ["GENBOUND_CACHE"]).rglob("*"))


@pytest.mark.parametrize("cache", ["", "cache", "./cache"])
def test_a_cache_beside_the_checkpoint_is_none(cache, folder, monkeypatch):
    genbound.save_spec("a.pt", model="x.py:f")
    stored = next(path for path in Path(os.environ["GENBOUND_CACHE"]).rglob("*") if path.is_file())
    Path("cache/trusted").mkdir(parents=True), Path("cache/trusted", stored.name).touch()
    monkeypatch.setenv("GENBOUND_CACHE", cache)
    monkeypatch.setattr("genbound.checkpoints.trust._seen", set())
    with pytest.raises(GenboundError, match="would run code"):
        PairSpec("a.pt").completed()


# -- a run's own record -----------------------------------------------------------------------------------------------


def test_the_record_of_a_run_names_no_code(folder):
    np.savez("labels.npz", train=np.array([2, 0]), observed=np.array([1, 1, 0, 1]))

    def record(data):
        Path("run.json").write_text(json.dumps({"data": data, "label2id": None}))

    for data in ("x.py:f", "x:f"):
        record(data)
        with pytest.raises(GenboundError, match="would run code"):
            load_data(f"run:{folder}")
    record(f"run:{folder}")
    with pytest.raises(GenboundError, match="another run"):
        load_data(f"run:{folder}", Reader(trust_remote_code=True))
    assert not ran()
    record("npz:train.npz")
    samples = load_data(f"run:{folder}")
    assert [int(label) for label in samples.batch([0, 1]).targets] == [0, 1]
    np.savez("labels.npz", train=np.array([4]), observed=np.array([1, 1, 0, 1]))
    with pytest.raises(GenboundError, match="places"):
        load_data(f"run:{folder}")
