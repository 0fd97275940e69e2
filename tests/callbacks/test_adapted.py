"""Adapters in training: one definition of the network for the callback, the command line and peft's own merging."""

import copy
import json
import warnings

import pytest
from tiny_bert import tiny_bert

import genbound
from genbound.cli.main import main

peft = pytest.importorskip("peft", reason="peft is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

METHODS = {
    "lora": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]),
    "rslora": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=2, use_rslora=True, target_modules=["query"]),
    "dora": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=2, use_dora=True, target_modules=["query", "dense"]),
    "ia3": lambda: peft.IA3Config(
        task_type="SEQ_CLS", target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
    ),
    "adalora": lambda: peft.AdaLoraConfig(
        task_type="SEQ_CLS", target_modules=["query"], init_r=2, target_r=1, total_step=20
    ),
    "modules_to_save": lambda: peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["pooler"]
    ),
}


def trained(folder, method, steps=4, save_steps=2, **callback):
    """A tiny BERT trained with an adapter; the adapted model and its callback."""
    from genbound.callbacks.transformers import GenboundCallback

    base = tiny_bert(vocab_size=50, num_hidden_layers=2, num_labels=3)
    start = copy.deepcopy(base)
    with warnings.catch_warnings():  # of the libraries about each other
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, METHODS[method]())
    rows = datasets.Dataset.from_list(
        [
            {"input_ids": [1 + (7 * i + j) % 49 for j in range(5)], "attention_mask": [1] * 5, "labels": i % 3}
            for i in range(8)
        ]
    )
    found = GenboundCallback(**callback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = transformers.TrainingArguments(
            folder, max_steps=steps, save_steps=save_steps, per_device_train_batch_size=4, report_to=[], use_cpu=True,
            disable_tqdm=True, learning_rate=0.05,
        )  # fmt: skip
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[found]).train()
    return start, model, found


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_of_the_trainer_needs_no_flags(tmp_path, monkeypatch, capfd, method):
    """The command line on the last checkpoint, the callback's own measuring, and peft's merge against the start."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start, model, callback = trained(tmp_path / "out", method, measure=["displacement_norm", "losses"])
    capfd.readouterr()  # what the Trainer logs
    assert main(["evaluate", str(tmp_path / "out" / "checkpoint-4"), "--measures", "displacement_norm,losses",
                 "-q", "--json"]) == 0, capfd.readouterr().err  # fmt: skip
    printed = json.loads(capfd.readouterr().out)["quantities"]
    merged = dict(copy.deepcopy(model).merge_and_unload().named_parameters())
    before = dict(start.named_parameters())
    moved = {n: float((merged[n] - before[n]).detach().double().norm()) for n in merged if merged[n].ndim > 1}
    moved = {n: value for n, value in moved.items() if "embeddings" not in n}
    for found in (printed, callback.results.quantities):
        layers = found["displacement_norm"]["layers"]
        assert set(layers) == set(moved)  # the network's layers, and none of the adapter's
        for name, value in moved.items():
            assert layers[name]["value"] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert printed["losses"]["train_loss"] == pytest.approx(
        callback.results.quantities["losses"]["train_loss"], rel=1e-5
    )
    assert sum(value > 1e-4 for value in moved.values()) >= 2


def test_each_checkpoint_has_its_own_distance(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trained(tmp_path / "out", "lora")
    norms = []
    for step in (2, 4):
        problem = genbound.load(tmp_path / "out" / f"checkpoint-{step}")
        norms.append(
            genbound.measure(problem, "displacement_norm")["bert.encoder.layer.0.attention.self.query.weight"].value
        )
    assert 0 < norms[0] != norms[1] > 0


def test_the_model_in_training_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, model, _ = trained(tmp_path / "out", "lora", measure=["displacement_norm"])
    names = [name for name, _ in model.named_parameters()]
    assert any("lora_A" in name for name in names) and model.peft_config
