"""Measures in a training's log: every k epochs, on training or held-out samples, to stop and to choose by."""

import warnings

import pytest
import torch
from tiny_bert import tiny_bert
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import genbound
from genbound.callbacks.record import Record
from genbound.errors import GenboundError

MEASURES = ["losses", "displacement_norm", "distance_frobenius"]


def train_bert(folder, callback=None, more=(), **arguments):
    """A tiny BERT, two epochs of 12 rows: its trainer and its weights at the end."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = tiny_bert(vocab_size=60, num_hidden_layers=1, num_labels=2)
    rows = [{"input_ids": [1 + i, 2, 3], "attention_mask": [1] * 3, "labels": i % 2} for i in range(20)]
    training, test = (datasets.Dataset.from_list(part) for part in (rows[:12], rows[12:]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = transformers.TrainingArguments(
            folder, num_train_epochs=3, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True,
            learning_rate=0.01, eval_strategy="epoch", save_strategy="epoch", **arguments,
        )  # fmt: skip
        callbacks = [*([callback] if callback else []), *more]
        trainer = transformers.Trainer(
            model, given, train_dataset=training, eval_dataset=test, callbacks=callbacks or None
        )
        if getattr(callback, "log", None) == "trainer":
            callback.log = trainer.log
        trainer.train()
    return trainer, {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_trainer_logs_and_chooses_by_a_measure(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from genbound.callbacks.transformers import GenboundCallback

    _, undisturbed = train_bert(tmp_path / "plain")
    callback = GenboundCallback(measure=MEASURES, every=1, num_samples=12)
    by_distance = {"metric_for_best_model": "genbound_distance_frobenius", "greater_is_better": False}
    trainer, weights = train_bert(tmp_path / "out", callback, **by_distance)
    assert all(torch.equal(weights[name], undisturbed[name]) for name in weights)  # measuring changes no training

    logged = [row for row in trainer.state.log_history if "genbound_distance_frobenius" in row]
    assert [row["epoch"] for row in logged] == [1, 2, 3]
    distances = [row["genbound_distance_frobenius"] for row in logged]
    for epoch, row in enumerate(logged, 1):
        stored = genbound.load_results(tmp_path / "out" / "genbound" / f"epoch-{epoch}")
        assert stored.bounds["distance_frobenius"]["value"] == row["genbound_distance_frobenius"]
        evaluated = next(r for r in trainer.state.log_history if r.get("epoch") == epoch and "eval_loss" in r)
        assert row["genbound_test_loss"] == pytest.approx(evaluated["eval_loss"], rel=1e-5)
    later = genbound.load(tmp_path / "out" / "checkpoint-9")  # the sidecar names the evaluation's data, too
    assert len(later.data) == 12 and len(later.test_data) == 8
    best = int(trainer.state.best_model_checkpoint.rpartition("-")[2]) // 3
    assert distances[best - 1] == min(distances)
    assert trainer.state.best_metric == pytest.approx(min(distances))


def test_training_stops_when_a_measure_no_longer_falls(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from genbound.callbacks.transformers import GenboundCallback

    callback = GenboundCallback(measure=MEASURES, every=1, num_samples=12)
    by_distance = {"metric_for_best_model": "genbound_distance_frobenius", "greater_is_better": False}
    stop = transformers.EarlyStoppingCallback(early_stopping_patience=1)
    trainer, _ = train_bert(tmp_path, callback, [stop], load_best_model_at_end=True, **by_distance)
    assert trainer.state.epoch == 2  # the distance grows from the first epoch to the second


def test_held_out_samples_and_the_trackers(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from genbound.callbacks.transformers import GenboundCallback

    callback = GenboundCallback(measure=MEASURES, every=2, on="test", num_samples=8)
    callback.log = "trainer"
    trainer, _ = train_bert(tmp_path, callback)
    (logged,) = (row for row in trainer.state.log_history if "genbound_distance_frobenius" in row)
    evaluated = next(r for r in trainer.state.log_history if r.get("epoch") == 2 and "eval_loss" in r)
    assert logged["epoch"] == 2 and logged["genbound_train_loss"] == pytest.approx(evaluated["eval_loss"], rel=1e-5)
    stored = genbound.load_results(tmp_path / "genbound" / "epoch-2")
    assert stored.config["num_data"] == 12 and stored.config["num_samples"] == 8
    assert "The samples given are not of the training set" in stored.to_markdown()


def test_lightning_stops_by_a_measure(tmp_path):
    pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    from genbound.callbacks.lightning import GenboundCallback

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, _):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    def fit(callbacks):
        torch.manual_seed(0)
        module, x = Net(), torch.randn(24, 4)
        data = TensorDataset(x, (x.sum(1) > 0).long())
        loaders = DataLoader(data, batch_size=6, shuffle=True), DataLoader(data, batch_size=6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(
                max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
                enable_model_summary=False, default_root_dir=tmp_path, callbacks=callbacks, num_sanity_val_steps=0,
            )  # fmt: skip
            trainer.fit(module, *loaders)
        return trainer, module

    _, undisturbed = fit([])
    callback = GenboundCallback(tmp_path / "run", measure=MEASURES, every=1, num_samples=12)
    trainer, module = fit([callback])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), undisturbed.parameters(), strict=True))
    assert trainer.callback_metrics["genbound_distance_frobenius"] == pytest.approx(
        callback.results.bounds["distance_frobenius"]["value"]
    )
    assert callback.results.quantities["losses"]["generalization_gap"] == pytest.approx(0, abs=1e-6)  # the same data
    stop = pl.callbacks.EarlyStopping("genbound_distance_frobenius", patience=1, check_on_train_epoch_end=True)
    stopped, _ = fit([GenboundCallback(tmp_path / "again", measure=MEASURES, every=1, num_samples=12), stop])
    assert stopped.current_epoch == 2  # it grows


@pytest.mark.parametrize("steps", [2, 6])
def test_an_epoch_that_is_broken_off_is_none(tmp_path, steps):
    """Three steps of the Trainer make an epoch, and four batches of Lightning, or what it is limited to."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    from genbound.callbacks.lightning import GenboundCallback as OfLightning
    from genbound.callbacks.transformers import GenboundCallback

    def measured(folder):
        return sorted(path.name for path in (tmp_path / folder / "genbound").glob("epoch-*"))

    train_bert(tmp_path / "bert", GenboundCallback(measure=["displacement_norm"], every=1), max_steps=steps - 1)
    assert measured("bert") == ["epoch-1"][: steps // 3]

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
    for limit, name in ((1.0, "whole"), (2, "limited")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pl.Trainer(
                max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
                enable_model_summary=False, default_root_dir=tmp_path, limit_train_batches=limit,
                callbacks=[OfLightning(tmp_path / name, measure=["displacement_norm"], num_samples=8, every=1)],
            ).fit(Net(), DataLoader(data, batch_size=6))  # fmt: skip
    assert measured("whole") == ["epoch-1"][: steps // 4]
    assert measured("limited") == [f"epoch-{i}" for i in range(1, steps // 2 + 1)]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(GenboundError, match="every=0"):
        Record({}, MEASURES, 8, every=0)
    with pytest.raises(GenboundError, match="measure"):
        Record({}, None, 8, every=1)
    with pytest.raises(GenboundError, match="on='valid'"):
        Record({}, MEASURES, 8, on="valid")
