"""The sidecar: what a training script writes makes a later evaluation need no flags."""

import json
import os
import warnings

import numpy as np
import pytest
import torch
from small_checkpoints import LIT, NETS, Net, images, nudge

import genbound
from genbound.cli.main import main
from genbound.errors import GenboundError


@pytest.fixture
def trained(tmp_path):
    """A checkpoint, its start and its data, as a training script leaves them."""
    (tmp_path / "nets.py").write_text(NETS)
    torch.manual_seed(0)
    start = Net()
    torch.save(nudge(start).state_dict(), tmp_path / "tuned.pt")
    x, y = images(12)
    np.savez(tmp_path / "train.npz", x=x, y=y)
    return tmp_path, start


def test_no_flags(trained, monkeypatch, capsys):
    folder, start = trained
    genbound.save_spec(
        folder / "tuned.pt", init=start, model="nets.py:Net", data="npz:train.npz", loss="cross_entropy", num_data=500
    )
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert main(["evaluate", "../tuned.pt", "--measures", "displacement_norm,losses", "--out", "run"]) == 0
    record = json.loads((folder / "elsewhere" / "run" / "results.json").read_text())
    expected = nudge(start)
    norm = (expected.mix.weight - start.mix.weight).norm().item()
    assert record["quantities"]["displacement_norm"]["layers"]["mix.weight"]["value"] == pytest.approx(norm, rel=1e-5)
    assert record["config"]["num_data"] == 500
    assert main(["inspect", "../tuned.pt", "--num-data", "77"]) == 0  # the command line wins
    shown = capsys.readouterr().out
    assert "genbound.yaml" in shown and "n = 77" in shown
    assert genbound.load(folder / "tuned.pt").num_data == 500


def test_settings_are_kept_and_checked(trained):
    folder, start = trained
    genbound.save_spec(folder, model="nets.py:Net")
    path = genbound.save_spec(folder, data="npz:train.npz")
    assert path.read_text() == "model: nets.py:Net\ndata: npz:train.npz\n"
    for wrong in ({"modle": "x"}, {"num_data": "many"}, {"model": 3}, {"num_data": True}):
        with pytest.raises(GenboundError, match="setting|must be"):
            genbound.save_spec(folder, **wrong)


def test_loss_of_the_users_own(trained, monkeypatch):
    folder, start = trained
    monkeypatch.chdir(folder)
    torch.save(start.state_dict(), "start.pt")
    (folder / "loss.py").write_text(
        "def brier(outputs, targets):\n"
        "    p = outputs.softmax(-1)\n"
        "    return (p - p.new_zeros(p.shape).scatter(1, targets[:, None], 1.0)).square().sum(1)\n"
        "def mean(outputs, targets):\n    return brier(outputs, targets).mean()\n"
    )
    given = [
        "evaluate",
        "tuned.pt",
        "start.pt",
        "--model",
        "nets.py:Net",
        "--data",
        "npz:train.npz",
        "--measures",
        "losses",
    ]
    assert main([*given, "--loss", "loss.py:brier", "--out", "run"]) == 0
    record = json.loads((folder / "run" / "results.json").read_text())
    x, y = images(12)
    p = nudge(start)(x).softmax(-1)
    expected = (p - torch.nn.functional.one_hot(y, 3)).square().sum(1).mean().item()
    assert record["quantities"]["losses"]["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert main([*given, "--loss", "loss.py:mean"]) == 2
    assert main([*given, "--loss", "loss.py:absent"]) == 2


def test_trainer_callback(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from genbound.callbacks.transformers import GenboundCallback

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = [{"input_ids": list(range(1, 4 + i % 3)), "labels": i % 3} for i in range(8)]
    rows = datasets.Dataset.from_list([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows])

    def collate(batch):
        width = max(len(row["input_ids"]) for row in batch)
        pad = lambda name: torch.tensor([row[name] + [0] * (width - len(row[name])) for row in batch])  # noqa: E731
        return {
            "input_ids": pad("input_ids"),
            "attention_mask": pad("attention_mask"),
            "labels": torch.tensor([r["labels"] for r in batch]),
        }

    callback = GenboundCallback(measure=["displacement_norm", "losses"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = transformers.TrainingArguments(
            tmp_path / "out", max_steps=2, save_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
            disable_tqdm=True, learning_rate=0.01,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, arguments, train_dataset=rows, data_collator=collate, callbacks=[callback]
        )
        trainer.train()
    found = callback.results.quantities
    moved = {name: (p.detach() - before[name]).norm().item() for name, p in model.named_parameters()}
    assert found["displacement_norm"]["layers"]["classifier.weight"]["value"] == pytest.approx(
        moved["classifier.weight"], rel=1e-4
    )
    later = genbound.load(tmp_path / "out" / "checkpoint-2")
    assert len(later.data) == 8 and later.provenance["head_note"] == ""
    assert genbound.measure(later, "losses")["train_loss"] == pytest.approx(found["losses"]["train_loss"], rel=1e-5)
    assert genbound.measure(later, "displacement_norm")["classifier.weight"].value == pytest.approx(
        moved["classifier.weight"], rel=1e-4
    )


def test_lightning_callback(tmp_path, monkeypatch):
    pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    from genbound.callbacks.lightning import GenboundCallback

    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "lit.py").write_text(LIT)
    monkeypatch.syspath_prepend(tmp_path)
    import lit

    x, y = images(12)
    np.savez(tmp_path / "train.npz", x=x, y=y)
    torch.manual_seed(0)
    module = lit.Lit(3)
    before = module.net.mix.weight.detach().clone()
    callback = GenboundCallback(data="npz:../train.npz", measure=["losses"], ignore="criterion.*")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[callback, pl.callbacks.ModelCheckpoint(tmp_path / "ckpt", filename="last")],
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5))
    later = genbound.load(tmp_path / "ckpt" / "last.ckpt")
    norm = (module.net.mix.weight.detach() - before).norm().item()
    assert genbound.measure(later, "displacement_norm")["net.mix.weight"].value == pytest.approx(norm, rel=1e-4)
    measured = callback.results.quantities["losses"]["train_loss"]
    assert genbound.measure(later, "losses")["train_loss"] == pytest.approx(measured, rel=1e-5)
    assert os.path.exists(tmp_path / "ckpt" / "genbound" / "results.json")
    import sys

    sys.modules.pop("lit"), sys.modules.pop("nets", None)
