"""The quantised network: its error is that of the checkpoint that is written, and its length is that of its parts."""

import hashlib
import json
import math
import warnings

import numpy as np
import pytest
import torch
from posterior_nets import mlp
from safetensors.torch import load_file
from torch.nn import functional as F

import genbound
from genbound.errors import GenboundError
from genbound.quantities import quantized_error
from genbound.quantities.quantized_error import CLOSE, _in_reach, _rounds, _Runner

NAME = "quantized_error"


def fitted(classes=2, num=300, **arguments):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, classes)
    )
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(num, 4)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return genbound.Problem(net, start, (x, y), init_buffers=start, **arguments), x, y


def test_the_error_is_that_of_the_checkpoint_beside_the_results(tmp_path):
    problem, x, y = fitted()
    results = genbound.evaluate(problem, ["compression_certificate"])
    results.save(tmp_path)
    summary = results.quantities[NAME]
    problem.model.load_state_dict(load_file(tmp_path / NAME / "model.safetensors"))
    with torch.no_grad():
        wrong = (problem.model.eval()(x).argmax(1) != y).double().mean()
    assert summary["error"] == pytest.approx(float(wrong), abs=1e-9)
    assert summary["nats"] == pytest.approx(sum(row["nats"] for row in summary["groups"].values()))
    assert {"1.running_mean", "1.running_var"} < set(summary["groups"])
    assert results.bounds["compression_certificate"].value < 0.5
    assert not any(torch.equal(problem.params[name], p) for name, p in problem.model.named_parameters() if p.dim() > 1)


def test_half_types_that_numpy_has_not():
    problem = fitted(dtype=torch.bfloat16)[0]
    found = genbound.evaluate(problem, "quantized_error")
    weights = found.networks["quantized_error"]
    numbers = [torch.from_numpy(array) for array in weights.values() if array.dtype.kind == "f"]
    assert len(numbers) == 8 and all(t.dtype is torch.float32 and torch.equal(t.bfloat16().float(), t) for t in numbers)


def test_the_checkpoint_has_its_digest_and_goes_when_the_results_are_of_something_else(tmp_path):
    problem, _, _ = fitted()
    results = genbound.evaluate(problem, ["compression_certificate"])
    results.save(tmp_path)
    written = tmp_path / NAME / "model.safetensors"
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "SHA256SUMS").read_text().splitlines())
    assert sums[f"{NAME}/model.safetensors"] == hashlib.sha256(written.read_bytes()).hexdigest()
    own = tmp_path / "mine" / "notes.txt"
    own.parent.mkdir()
    own.write_text("kept")
    with open(tmp_path / "SHA256SUMS", "a") as file:
        file.write("0  mine/notes.txt\n")
    genbound.evaluate(problem, ["displacement_norm"]).save(tmp_path)
    assert not written.exists() and own.exists()


def test_it_measures_the_same_again_from_what_is_stored(tmp_path):
    problem, _, _ = fitted()
    once = genbound.evaluate(problem, [NAME], out=tmp_path)
    again = genbound.evaluate(problem, [NAME], out=tmp_path)
    assert once.quantities == again.quantities
    for name, tensor in once.networks[NAME].items():
        assert (again.networks[NAME][name] == tensor).all()


def test_a_directory_of_transformers_can_be_loaded(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30, num_labels=2,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        model.classifier.weight += torch.randn_like(model.classifier.weight)
    model.save_pretrained(tmp_path / "tuned")
    ids = torch.randint(30, (40, 6))
    rows = [({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.randint(2, (40,)))]
    problem = genbound.load(tmp_path / "tuned", tmp_path / "start", data=rows)
    genbound.evaluate(problem, [NAME]).save(tmp_path / "run")
    folder = tmp_path / "run" / NAME
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    again = genbound.load(folder, tmp_path / "start", data=rows)
    summary = genbound.evaluate(problem, [NAME]).quantities[NAME]
    assert genbound.evaluate(again, ["losses"]).quantities["losses"]["train_error"] == pytest.approx(summary["error"])


def test_the_merged_weights_of_an_adapter_can_be_loaded(tmp_path):
    """As a model of transformers, though neither the adapter's config nor its base's describes them."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "start")
    (tmp_path / "start" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "start", num_labels=3)
    with warnings.catch_warnings():  # of the libraries about each other
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "tuned")
    ids = torch.randint(30, (40, 6))
    rows = [({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.randint(3, (40,)))]
    results = genbound.evaluate(genbound.load(tmp_path / "tuned", tmp_path / "start", data=rows), [NAME])
    results.save(tmp_path / "run")
    folder = tmp_path / "run" / NAME
    assert (folder / "vocab.txt").is_file()
    again = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert type(again) is transformers.BertForSequenceClassification
    for name, tensor in results.networks[NAME].items():
        assert torch.equal(again.state_dict()[name], torch.from_numpy(tensor)), name
    with torch.no_grad():
        wrong = (again(**rows[0][0]).logits.argmax(1) != rows[0][1]).double().mean()
    assert wrong == pytest.approx(results.quantities[NAME]["error"])


def test_a_head_of_two_classes_is_described_by_one_row():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        net[2].weight += torch.randn(2, 5)
    x = torch.randn(400, 4)
    problem = genbound.Problem(net, start, (x, net(x).argmax(1)))
    groups = genbound.evaluate(problem, [NAME]).quantities[NAME]["groups"]
    assert set(groups) == {"2.weight"} and groups["2.weight"]["form"] == "opposite"


def test_a_large_head_on_a_grid_is_found_between_all_and_nothing():
    """Where length falls in proportion to what is left out, a weighted sum of both has its least at an end: 0.68."""
    torch.manual_seed(0)
    centres, y = 0.25 * torch.randn(10, 300), torch.randint(10, (4000,))
    x = torch.randn(4000, 300) + centres[y]
    net = torch.nn.Linear(300, 10)
    start = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    with torch.no_grad():
        net.weight.copy_(0.1 * (centres - centres.mean(0) + 0.1 * torch.randn(10, 300)))
        net.bias.zero_()
    results = genbound.evaluate(genbound.Problem(net, start, (x, y)), ["compression_certificate"])
    found = results.quantities[NAME]
    assert found["groups"]["weight"]["form"] == "grid" and found["tau"] is None
    assert results.bounds["compression_certificate"].value < 0.6


def test_who_cannot_be_better_leaves_the_race():
    """Two that differ on no sample may still differ on a few of many; one that errs on half of them may not be best."""

    def runner(rate, *wrong, num=64):
        errors = np.zeros(num)
        errors[list(wrong)] = 1.0
        return _Runner(None, {}, rate, errors)

    best, alike, bad = runner(0.1, 0, 1), runner(0.105, 0, 1), runner(0.1, *range(32))
    assert _in_reach([bad, best, alike]) == [best, alike]
    assert alike.least(best) < best.promised - CLOSE < alike.promised
    later = [runner(rate, 0, 1, num=4096) for rate in (0.1, 0.105)]
    assert _in_reach(later) == later[:1]
    assert later[0].further(np.ones(4)).errors.sum() == 6


def test_the_rounds_of_the_pilot_are_all_of_it():
    for num in (1, 64, 65, 4096, 5000):
        rounds = _rounds(num)
        assert [first for first, _ in rounds] == [0, *(last for _, last in rounds[:-1])]
        assert rounds[-1][1] == num and rounds[0][1] == min(64, num)


def test_few_of_the_networks_come_to_all_of_the_pilot(monkeypatch):
    problem, _, _ = fitted(num=2000)
    tried, whole = [], quantized_error._errors

    def errors(problem, weights, samples):
        tried.append(len(samples))
        return whole(problem, weights, samples)

    monkeypatch.setattr(quantized_error, "_errors", errors)
    genbound.evaluate(problem, [NAME])
    rounds = {last - first: tried.count(last - first) for first, last in _rounds(2000)}
    counts = list(rounds.values())
    assert counts[0] >= 5 and counts == sorted(counts, reverse=True) and counts[-1] <= counts[0] / 2


def test_losses_with_a_range_are_certified_as_a_form():
    problem, _, _ = fitted(loss_range="bounded:0.01")
    results = genbound.evaluate(problem, ["compression_certificate"])
    row, summary = results.bounds["compression_certificate"], results.quantities[NAME]
    assert summary["loss_range"] == pytest.approx(problem.loss.range) and 0 < summary["loss"] < 1
    assert 0 < 10 ** row["forms"]["bounded_loss"]["log10"] < 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_data": 1000}, "whole training set"),
        ({"loss": "squared_error"}, "neither a 0-1 error nor a range"),
    ],
)
def test_nothing_where_nothing_is_guaranteed(arguments, words):
    problem = mlp(1 if "loss" in arguments else 3, **arguments)
    row = genbound.evaluate(problem, ["compression_certificate"]).bounds["compression_certificate"]
    assert row.value is None and words in row.note


def test_options_that_make_no_sense_are_refused():
    for options in ({"taus": ()}, {"taus": (0.0,)}, {"num_pilot": 0}):
        with pytest.raises(GenboundError, match="quantized_error"):
            genbound.evaluate(mlp(), [NAME], options={NAME: options})


def test_no_infinite_nats():
    assert math.isfinite(genbound.measure(mlp(), NAME)["nats"])


def test_the_table_says_why_there_is_none():
    options = {"gibbs_error": {"most_normals": 1.0}}
    results = genbound.evaluate(mlp(), ["pac_bayes_certificate"], options=options)
    assert "a pass would draw" in results.to_markdown().rpartition("Gibbs error: /, ")[2]
    results = genbound.evaluate(mlp(1, loss="squared_error"), ["compression_certificate"])
    assert "Quantised network: /, the loss has neither" in results.to_markdown()
