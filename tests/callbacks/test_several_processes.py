"""A training in several processes chooses and stops by what the first of them measures."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import genbound
from genbound.callbacks.first_process import by_torch, of_first
from genbound.errors import GenboundError

NAME = "genbound_distance_frobenius"
TRAINER = """
import datasets, sys, transformers
from tiny_bert import tiny_bert
from genbound.callbacks.transformers import GenboundCallback

rows = [{"input_ids": [1 + i, 2, 3], "attention_mask": [1] * 3, "labels": i % 2} for i in range(24)]
train, test = (datasets.Dataset.from_list(part) for part in (rows[:16], rows[16:]))
callback = GenboundCallback(measure=["losses", "distance_frobenius"], num_samples=8, every=1)
arguments = transformers.TrainingArguments(
    sys.argv[1], num_train_epochs=2, per_device_train_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True,
    learning_rate=0.01, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
    metric_for_best_model="NAME", greater_is_better=False,
)
model = tiny_bert(vocab_size=60, num_hidden_layers=1, num_labels=2)
trainer = transformers.Trainer(model, arguments, train_dataset=train, eval_dataset=test, callbacks=[callback])
trainer.train()
print(f"found {trainer.state.best_metric}\\n", end="")
"""
LIGHTNING = """
import sys, torch
import pytorch_lightning as pl
from torch.utils.data import DataLoader, TensorDataset
from genbound.callbacks.lightning import GenboundCallback

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)

torch.manual_seed(0)
x = torch.randn(24, 4)
callback = GenboundCallback(sys.argv[1], measure=["losses", "distance_frobenius"], num_samples=12, every=1)
stop = pl.callbacks.EarlyStopping("NAME", patience=1, check_on_train_epoch_end=True)
trainer = pl.Trainer(
    max_epochs=4, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
    enable_model_summary=False, enable_checkpointing=False, default_root_dir=sys.argv[1], callbacks=[callback, stop],
)
trainer.fit(Net(), DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=6))
print(f"found {trainer.current_epoch} {float(trainer.callback_metrics['NAME'])}\\n", end="")
"""


@pytest.mark.parametrize(("script", "needs"), [(TRAINER, "accelerate"), (LIGHTNING, "pytorch_lightning")])
def test_every_process_knows_the_numbers(tmp_path, script, needs):
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    (tmp_path / "train.py").write_text(script.replace("NAME", NAME))
    here = [str(Path(genbound.__file__).parent.parent), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(here), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*started, str(tmp_path / "train.py"), str(tmp_path / "out")], env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = (line for line in run.stdout.splitlines() if line.startswith("found"))
    assert one == two and "None" not in one


def test_what_fails_in_the_first_fails_in_all():
    def fails():
        raise GenboundError("it cannot be measured")

    told = []
    with pytest.raises(GenboundError, match="^it cannot be measured"):
        of_first(True, fails, lambda said: told.append(said) or said)
    with pytest.raises(GenboundError, match="the first process: it cannot be measured"):
        of_first(False, fails, lambda said: told[0])
    assert of_first(True, lambda: {"a": 1.0}, by_torch) == {"a": 1.0}
