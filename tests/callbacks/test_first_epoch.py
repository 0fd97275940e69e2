"""A run brings its own prior: the weights within the first epoch, and the samples that were handed out by then."""

import copy
import sys
import warnings

import numpy as np
import pytest
import torch
from tiny_bert import tiny_bert
from torch import nn

import genbound
from genbound.callbacks.first_epoch import FirstEpoch
from genbound.data.sample_numbers import read_numbers, write_seen
from genbound.data.samples import as_samples
from genbound.errors import GenboundError
from genbound.posterior.groups import unseen


def bert_run(folder, prior=0.5, steps=20, **callback):
    """A tiny BERT on 40 rows in batches of 4: its callback, the rows of each step, and the weights after step 5."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from genbound.callbacks.transformers import GenboundCallback

    model = tiny_bert(vocab_size=60, num_hidden_layers=1, num_labels=2)
    rows = datasets.Dataset.from_list(
        [{"input_ids": [1 + i, 2, 3], "attention_mask": [1] * 3, "labels": i % 2} for i in range(40)]
    )
    trained, kept = [], {}

    class Spy(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                kept.update({name: p.detach().clone() for name, p in model.named_parameters()})

    class Trainer(transformers.Trainer):
        def training_step(self, model, inputs, *rest):
            trained.append([int(i) - 1 for i in inputs["input_ids"][:, 0]])
            return super().training_step(model, inputs, *rest)

    found = GenboundCallback(prior=prior, **callback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = transformers.TrainingArguments(
            folder, max_steps=steps, save_steps=20, per_device_train_batch_size=4, report_to=[], use_cpu=True,
            disable_tqdm=True, learning_rate=0.01,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows, callbacks=[Spy(), found]).train()
    return model, trained, kept, found


def test_a_checkpoint_of_the_trainer_knows_its_prior(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, trained, kept, callback = bert_run(tmp_path / "out", measure=["gibbs_error"])
    problem = genbound.load(tmp_path / "out" / "checkpoint-20")
    before, later = ({i for batch in part for i in batch} for part in (trained[:5], trained[5:10]))
    assert len(before) == 20 and before <= problem.prior.samples
    assert len(problem.prior.samples - before) <= 4  # one batch that was fetched ahead
    assert set(unseen(problem)) == set(range(40)) - problem.prior.samples < later
    for name, weight in kept.items():
        assert torch.equal(problem.prior.params[name], weight), name
        assert name.startswith("bert.embeddings") or not torch.equal(weight, problem.params[name])
    assert "genbound.yaml" in problem.remarks[-1]
    found = genbound.evaluate(problem, ["gibbs_error"]).quantities["gibbs_error"]
    assert found["num_data"] + found["num_prior"] == 40 and found["num_prior"] == len(problem.prior.samples)
    at_the_end = callback.results.quantities["gibbs_error"]
    assert at_the_end["kl"] == pytest.approx(found["kl"], rel=1e-4)
    assert at_the_end["num_data"] == found["num_data"]

    # with data of one's own, places in the run's data say nothing
    data = f"parquet:{tmp_path / 'out' / 'genbound_train.parquet'}"
    other = genbound.load(tmp_path / "out" / "checkpoint-20", data=data)
    assert other.prior is None and "is not used" in other.remarks[-1]
    named = genbound.load(
        tmp_path / "out" / "checkpoint-20", data=data, prior=tmp_path / "out" / "genbound_prior",
        prior_samples=tmp_path / "out" / "genbound_prior.npz",
    )  # fmt: skip
    assert named.prior.samples == problem.prior.samples


def test_the_training_is_the_same_without(tmp_path):
    one, trained, _, _ = bert_run(tmp_path / "one", steps=8)
    other, same, _, _ = bert_run(tmp_path / "other", prior=None, steps=8)
    assert trained == same
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert not (tmp_path / "other" / "genbound_prior").exists()


def test_a_new_run_forgets_the_prior_of_an_earlier_one(tmp_path):
    bert_run(tmp_path / "out", steps=8)
    assert "prior" in (tmp_path / "out" / "genbound.yaml").read_text()
    bert_run(tmp_path / "out", prior=None, steps=3)
    assert "prior" not in (tmp_path / "out" / "genbound.yaml").read_text()


LIT = """
import pytorch_lightning as pl
import torch


class Lit(pl.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""


def lightning_run(tmp_path, monkeypatch, **loader):
    pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    from genbound.callbacks.lightning import GenboundCallback

    (tmp_path / "lit_prior.py").write_text(LIT)
    monkeypatch.syspath_prepend(tmp_path)
    import lit_prior

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=generator), torch.arange(40) % 2
    np.savez(tmp_path / "train.npz", x=x, y=y)
    torch.manual_seed(0)
    module, trained, kept = lit_prior.Lit(4), [], {}

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, index):
            trained.append([int((x == row).all(1).nonzero()) for row in batch[0]])
            if trainer.global_step == 5:
                kept.update({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    callback = GenboundCallback(data="npz:../train.npz", prior=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[Spy(), callback, pl.callbacks.ModelCheckpoint(tmp_path / "ckpt", filename="last")],
        )  # fmt: skip
        rows = torch.utils.data.TensorDataset(x, y)
        try:
            trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=4, **loader))
        finally:
            sys.modules.pop("lit_prior")
    return trained, kept


def test_a_checkpoint_of_lightning_knows_its_prior(tmp_path, monkeypatch):
    trained, kept = lightning_run(tmp_path, monkeypatch, shuffle=True)
    problem = genbound.load(tmp_path / "ckpt" / "last.ckpt")
    before, later = ({i for batch in part for i in batch} for part in (trained[:5], trained[5:10]))
    assert before <= problem.prior.samples and len(problem.prior.samples - before) <= 8
    assert set(unseen(problem)) <= later
    assert all(torch.equal(problem.prior.params[name], weight) for name, weight in kept.items())
    found = genbound.evaluate(problem, ["gibbs_error"]).quantities["gibbs_error"]
    assert found["num_data"] == len(unseen(problem)) and found["num_prior"] == len(problem.prior.samples)


def test_an_order_that_is_not_random_is_refused(tmp_path, monkeypatch):
    with pytest.raises(GenboundError, match="SequentialSampler"):
        lightning_run(tmp_path, monkeypatch, shuffle=False)
    with pytest.raises(GenboundError, match="IterableDataset|order comes from"):
        FirstEpoch(torch.utils.data.DataLoader(Stream(), batch_size=4), 0.5)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(2), 0)] * 8)


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5])
def test_a_share_lies_between_nothing_and_all(share):
    from genbound.callbacks.record import Record

    with pytest.raises(GenboundError, match="share of the first epoch"):
        Record({}, None, 8, prior=share)


def test_several_processes_are_refused():
    from genbound.callbacks.record import Record

    with pytest.raises(GenboundError, match="one process"):
        Record({}, None, 8, prior=0.5).listen(None, 2)


def test_places_in_other_data_are_refused(tmp_path):
    x, y = torch.zeros(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
    write_seen(tmp_path / "seen.npz", [4, 1], 6, {0: 0, 2: 1, 4: 1})
    assert read_numbers(tmp_path / "seen.npz") == read_numbers(tmp_path / "seen.npz", as_samples((x, y))) == [4, 1]
    with pytest.raises(GenboundError, match="6 samples and the data have 5"):
        read_numbers(tmp_path / "seen.npz", as_samples((x[:5], y[:5])))
    with pytest.raises(GenboundError, match="another order: sample 0 had label 0"):
        read_numbers(tmp_path / "seen.npz", as_samples((x, y.roll(1) * 0 + 1)))
    np.savez(tmp_path / "half.npz", samples=np.array([1.5]), num_data=6, places=np.array([0]), labels=np.array([0]))
    with pytest.raises(GenboundError, match="does not name samples"):
        read_numbers(tmp_path / "half.npz")
    np.savez(tmp_path / "none.npz", x=np.array([1]))
    with pytest.raises(GenboundError, match="does not name samples"):
        read_numbers(tmp_path / "none.npz")


def test_prior_and_samples_go_together(tmp_path):
    """What the sidecar says of one prior is not said of another."""
    net = nn.Linear(2, 2)
    torch.save(net.state_dict(), tmp_path / "start.pt")
    moved = copy.deepcopy(net)
    nn.init.normal_(moved.weight)
    torch.save(moved.state_dict(), tmp_path / "tuned.pt")
    (tmp_path / "net.py").write_text("import torch\n\n\ndef net():\n    return torch.nn.Linear(2, 2)\n")
    np.savez(tmp_path / "train.npz", x=torch.randn(20, 2), y=torch.arange(20) % 2)
    (tmp_path / "seen.txt").write_text("0\n1\n")
    genbound.save_spec(
        tmp_path / "tuned.pt", model="net.py:net", init="start.pt", data="npz:train.npz", prior="start.pt",
        prior_samples="seen.txt",
    )  # fmt: skip
    assert genbound.load(tmp_path / "tuned.pt").prior.samples == {0, 1}
    assert genbound.load(tmp_path / "tuned.pt", prior=tmp_path / "start.pt").prior.samples is None
    with pytest.raises(GenboundError, match="--prior-samples without --prior"):
        genbound.load(tmp_path / "tuned.pt", prior_samples=[3])
