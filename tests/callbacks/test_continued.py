"""A training that goes on from a checkpoint keeps the start that it began from."""

import pickle
import warnings

import pytest
import torch
from safetensors.torch import load_file
from tiny_bert import tiny_bert
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import genbound
from genbound.callbacks.record import Record
from genbound.errors import GenboundError

MEASURES = ["displacement_norm"]


def norms(results):
    return {name: row["value"] for name, row in results.quantities["displacement_norm"]["layers"].items()}


def bert_run(folder, steps, resume=None, peft_config=None, out=None, wrap=lambda rows: rows):
    """A tiny BERT that trains to this step; the callback's results and the run's folder."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from genbound.callbacks.transformers import GenboundCallback

    model = tiny_bert(vocab_size=60, num_hidden_layers=1, num_labels=2)
    callback = GenboundCallback(measure=MEASURES, num_samples=8)
    rows = [{"input_ids": [1 + i, 2, 3], "attention_mask": [1] * 3, "labels": i % 2} for i in range(16)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        arguments = transformers.TrainingArguments(
            out or folder, max_steps=steps, save_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
            disable_tqdm=True, learning_rate=0.05, lr_scheduler_type="constant", resume_from_checkpoint=resume,
        )  # fmt: skip
        transformers.Trainer(
            model, arguments, train_dataset=wrap(datasets.Dataset.from_list(rows)), callbacks=[callback]
        ).train(resume_from_checkpoint=resume)
    return norms(callback.results)


def adapters():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    settings = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query"], "modules_to_save": ["pooler"]}
    return peft.LoraConfig(**settings)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_trainer_goes_on_from_its_own_start(tmp_path, monkeypatch, adapted):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(name, *more):
        return bert_run(tmp_path / name, *more, peft_config=adapters() if adapted else None)

    straight = run("straight", 4)
    run("stopped", 2)
    continued = run("stopped", 4, str(tmp_path / "stopped" / "checkpoint-2"))
    assert continued == pytest.approx(straight, rel=1e-5)
    later = genbound.load(tmp_path / "stopped" / "checkpoint-4")
    assert norms(genbound.evaluate(later, MEASURES)) == pytest.approx(straight, rel=1e-5)


def test_the_trainer_goes_on_in_another_folder(tmp_path, monkeypatch):
    """The checkpoint says where its start lies; where nothing says so the training is not begun."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    straight = bert_run(tmp_path / "straight", 4)
    bert_run(tmp_path / "first", 2)
    checkpoint = tmp_path / "first" / "checkpoint-2"
    assert bert_run(tmp_path, 4, str(checkpoint), out=tmp_path / "second") == pytest.approx(straight, rel=1e-5)
    start = load_file(tmp_path / "first" / "genbound_init.safetensors")
    again = load_file(tmp_path / "second" / "genbound_init.safetensors")
    assert all(torch.equal(start[name], again[name]) for name in start)
    (checkpoint / "genbound.yaml").unlink()
    with pytest.raises(GenboundError, match=r"the weights before it are not in .*third"):
        bert_run(tmp_path, 4, str(checkpoint), out=tmp_path / "third")


def test_a_new_run_forgets_the_samples_of_an_earlier_one(tmp_path, monkeypatch):
    """They lie in the same folder, and its own are of a kind that only the user knows the SPEC of."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bert_run(tmp_path, 2)
    assert len(genbound.load(tmp_path / "checkpoint-2").data) == 16
    bert_run(tmp_path, 2, wrap=lambda rows: torch.utils.data.Subset(rows, range(8)))
    assert genbound.load(tmp_path / "checkpoint-2").data is None
    genbound.save_spec(tmp_path, data="npz:own.npz")  # what the user has said stays
    bert_run(tmp_path, 2, wrap=lambda rows: torch.utils.data.Subset(rows, range(8)))
    assert "npz:" in (tmp_path / "checkpoint-2" / "genbound.yaml").read_text()


def test_lightning_goes_on_from_its_own_start(tmp_path):
    pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    from genbound.callbacks.lightning import GenboundCallback

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def forward(self, x):
            return self.net(x)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    def fit(name, epochs, resume=None, folder=None):
        torch.manual_seed(0)
        module, x = Net(), torch.randn(24, 4)
        callback = GenboundCallback(folder and tmp_path / folder, measure=MEASURES, num_samples=12)
        checkpoints = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / name, save_last=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(
                max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback, checkpoints],
            )  # fmt: skip
            loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=6)
            trainer.fit(module, loader, ckpt_path=resume)
        return norms(callback.results)

    straight = fit("straight", 4)
    fit("stopped", 2)
    resume = str(tmp_path / "stopped" / "last.ckpt")
    assert fit("stopped", 4, resume) == fit("new", 4, resume) == pytest.approx(straight, rel=1e-5)
    fit("elsewhere", 2, folder="sidecar")
    with pytest.raises(GenboundError, match="goes on from a checkpoint"):
        fit("elsewhere", 4, str(tmp_path / "elsewhere" / "last.ckpt"), folder="nowhere")


def test_a_start_is_that_of_its_model(tmp_path):
    """One callback in several trainings: each model has a start of its own; one that trains again keeps the first."""
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    record = Record({}, None, 8)
    record.begin(one)
    first = {name: p.detach().clone() for name, p in one.named_parameters()}
    with torch.no_grad():
        one.weight += 1
    record.begin(one)
    assert torch.equal(record.start["weight"], first["weight"])
    copied = pickle.loads(pickle.dumps(record))
    assert torch.equal(copied.start["weight"], first["weight"])
    record.begin(two)
    assert torch.equal(record.start["weight"], two.weight)
    record.write(tmp_path)
    with pytest.raises(GenboundError, match="the start of another network"):
        Record({}, None, 8).begin(nn.Linear(3, 2), [tmp_path])
