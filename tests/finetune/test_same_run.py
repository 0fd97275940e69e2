"""A run is found again and read again as what it was: its samples, what decides it, and how far it had come."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import genbound
from genbound.errors import GenboundError
from genbound.finetune.settings import Settings

pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate")
from genbound.finetune import finetune  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
"""


def write_samples(file, seed, count=60):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=stream)
    y = (x[:, :3] + 0.3 * torch.randn(count, 3, generator=stream)).argmax(1)
    np.savez(file, x=x.numpy(), y=y.numpy())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The present directory: samples, a pretrained checkpoint and the network's code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NET)
    write_samples("train.npz", 0)
    write_samples("test.npz", 1)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    save_file(net.state_dict(), "init.safetensors")
    return tmp_path


def run(out, num_classes=None, test_data="npz:test.npz", data="npz:train.npz", **options):
    settings = Settings(**{"epochs": 2, "batch_size": 16, "lr": 0.01} | options)
    return finetune(
        "init.safetensors", data, out, model="nets.py:make", test_data=test_data, num_classes=num_classes,
        settings=settings,
    )  # fmt: skip


def weights(out):
    return load_file(os.path.join(out, "finetuned", "model.safetensors"))


def same(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_its_samples_are_found_from_elsewhere_and_others_are_refused(folder, monkeypatch):
    run("out")
    here = genbound.load("out/finetuned", trust_remote_code=True)
    (folder / "elsewhere").mkdir()
    write_samples("elsewhere/train.npz", 5)
    monkeypatch.chdir("elsewhere")
    there = genbound.load("../out/finetuned", trust_remote_code=True)
    assert there.data.digest() == here.data.digest()
    # A record of before says the place as it was given: whatever lies there now is compared.
    file = folder / "out" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": "npz:train.npz"}))
    with pytest.raises(GenboundError, match="holds other samples than the run in"):
        genbound.load("../out/finetuned", trust_remote_code=True)
    monkeypatch.chdir(folder)
    assert genbound.load("out/finetuned", trust_remote_code=True).data.digest() == here.data.digest()


def test_a_missing_file_is_named_as_it_was_given(folder):
    with pytest.raises(GenboundError, match="no data file 'none.npz'; check the path in 'npz:none.npz'"):
        run("out", test_data="npz:none.npz")
