"""Stored parts are those of one network: whatever computes otherwise is measured afresh, and nothing else is."""

import copy
import json
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.cli.main import main
from genbound.data.texts import TextSamples, TokenSamples
from genbound.evaluation.recognition import identities

MEASURES = ["losses", "displacement_norm", "hessian_trace", "noise_stability"]
BATCHES = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc, self.slope = nn.Linear(4, 4), nn.Linear(4, 3), 0.1
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x):
        return self.fc(x + F.leaky_relu(self.body(x), self.slope) + self.shift)


def network(kind=Net):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind().double()


def without_residual(self, x):
    return self.fc(F.leaky_relu(self.body(x), self.slope) + self.shift)


def weighted(weight, power=1):
    def loss(outputs, targets):
        return weight * F.cross_entropy(outputs, targets, reduction="none") ** power

    return loss


def problem(model=None, loss="cross_entropy", data=BATCHES, **more):
    model = network() if model is None else model
    init = {name: 0.5 * p.detach() for name, p in network().named_parameters()}
    return genbound.Problem(model, init, (data[0].double(), data[1]), loss, **more)


def finished(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("parts/*/summary.json")}


def changed_model(change):
    model = network()
    change(model)
    return model


CHANGES = {
    "another forward of the object": lambda: problem(
        changed_model(lambda m: setattr(m, "forward", types.MethodType(without_residual, m)))
    ),
    "another class with the same printed form": lambda: problem(
        network(type("Net", (Net,), {"forward": without_residual}))
    ),
    "another attribute": lambda: problem(changed_model(lambda m: setattr(m, "slope", 0.2))),
    "another buffer": lambda: problem(changed_model(lambda m: m.shift.add_(1))),
    "another weight": lambda: problem(changed_model(lambda m: m.fc.weight.data.add_(1))),
    "a hook": lambda: problem(changed_model(lambda m: m.body.register_forward_hook(lambda _, x, y: 2 * y))),
    "other samples of the same shapes": lambda: problem(data=(BATCHES[0].flip(0), BATCHES[1])),
    "other labels": lambda: problem(data=(BATCHES[0], BATCHES[1].flip(0))),
    "another value in the loss's closure": lambda: problem(loss=weighted(2.0)),
    "another default of the loss": lambda: problem(loss=weighted(1.0, 2)),
    "another range": lambda: problem(loss=weighted(1.0), loss_range="clip:1"),
    "another n": lambda: problem(loss=weighted(1.0), num_data=50),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_network_is_measured_afresh(name, tmp_path):
    original = problem(loss=weighted(1.0)) if "loss" in name or "range" in name or " n" in name else problem()
    genbound.evaluate(original, ["losses", "displacement_norm"], out=tmp_path)
    before = finished(tmp_path)
    other = CHANGES[name]()
    found = genbound.evaluate(other, ["losses", "displacement_norm"], out=tmp_path)
    assert found.quantities == genbound.evaluate(other, ["losses", "displacement_norm"]).quantities
    assert len(finished(tmp_path)) == 2 * len(before) and before.items() <= finished(tmp_path).items()


def test_a_function_that_was_replaced_is_another_network(monkeypatch, tmp_path):
    one = problem()
    genbound.evaluate(one, ["losses"], out=tmp_path)
    monkeypatch.setattr(Net, "forward", without_residual)
    assert genbound.evaluate(one, ["losses"], out=tmp_path).quantities == genbound.evaluate(one, ["losses"]).quantities
    monkeypatch.setattr(F, "leaky_relu", lambda x, slope: x)
    assert genbound.evaluate(one, ["losses"], out=tmp_path).quantities == genbound.evaluate(one, ["losses"]).quantities
    assert len(finished(tmp_path)) == 3


def test_what_only_the_answers_show_is_another_network(monkeypatch, tmp_path, capsys):
    """A kernel that computes otherwise changes no code that can be seen."""
    one = problem()
    genbound.evaluate(one, ["losses"], out=tmp_path)
    forward = genbound.Problem.forward
    monkeypatch.setattr(genbound.Problem, "forward", lambda *given: 1.01 * forward(*given))
    for told in (True, False):
        found = genbound.evaluate(one, ["losses"], out=tmp_path)
        assert ("answers otherwise" in capsys.readouterr().err) is told
        assert found.quantities == genbound.evaluate(one, ["losses"]).quantities
        assert len(finished(tmp_path)) == 2
    monkeypatch.undo()
    genbound.evaluate(one, ["losses"], out=tmp_path)
    assert len(finished(tmp_path)) == 2


def test_answers_count_up_to_rounding(monkeypatch, tmp_path):
    one = problem()
    first, answers = identities(one, tmp_path), one.answers()
    monkeypatch.setattr(one, "answers", lambda: {key: value * (1 + 1e-15) for key, value in answers.items()})
    assert identities(one, tmp_path) == first


def test_texts_count_by_their_tokens():
    """Another tokenizer beside the checkpoint changes no text and every pass."""

    class Tokenizer:
        eos_token_id, pad_token_id, pad_token_type_id, padding_side, model_max_length = 0, 0, 0, "right", 8

        def __init__(self, step):
            self.step = step

        def __call__(self, texts, pairs, **options):
            return {"input_ids": [[self.step * len(word) for word in text.split()] for text in texts]}

    texts, labels = ["a bb", "ccc d e"], [0, 1]
    one, other = (TextSamples(texts, None, labels, Tokenizer(step)) for step in (1, 2))
    assert one.digest() == other.digest() and one.content_digest() != other.content_digest()
    again = TextSamples(texts, None, labels, Tokenizer(1))
    assert again.content_digest() == one.content_digest()
    left = TokenSamples([{"input_ids": [1]}, {"input_ids": [1, 2]}], labels, side="left")
    right = TokenSamples([{"input_ids": [1]}, {"input_ids": [1, 2]}], labels, side="right")
    assert left.content_digest() != right.content_digest()


def test_how_the_work_is_cut_voids_nothing(tmp_path):
    whole = genbound.evaluate(problem(), MEASURES, out=tmp_path)
    before = finished(tmp_path)
    assert len(before) >= len(MEASURES)
    for more in ({"batch_size": 3}, {"memory_budget": 1 << 30}, {"provenance": {"rule": "another"}}):
        again = genbound.evaluate(problem(**more), MEASURES, out=tmp_path, progress=True, delta=0.1)
        assert again.quantities == whole.quantities and finished(tmp_path) == before
    assert finished(tmp_path) == before


def test_equal_networks_are_one(tmp_path):
    genbound.evaluate(problem(), MEASURES, out=tmp_path)
    before = finished(tmp_path)
    again = copy.deepcopy(network()).train()
    genbound.evaluate(problem(again), MEASURES, out=tmp_path)
    assert finished(tmp_path) == before


# -- files ------------------------------------------------------------------------------------------------------------

NETS = """
import torch
from torch import nn
from layer_of_mine import act

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x + act(self.body(x)))

def data():
    stream = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=stream), torch.arange(30) % 3

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")
"""


@pytest.fixture
def files(tmp_path, monkeypatch, capsys):
    """``files(out)`` measures in this directory and gives what was stored; modules are imported afresh each time."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "layer_of_mine.py").write_text("def act(x): return x.tanh()")
    for seed, name in enumerate(("tuned", "init")):
        stream = torch.Generator().manual_seed(seed)
        shapes = {"body.weight": (4, 4), "body.bias": (4,), "fc.weight": (3, 4), "fc.bias": (3,)}
        save_file({n: torch.randn(s, generator=stream) for n, s in shapes.items()}, tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)

    def measure(out, *more):
        for name in [n for n in sys.modules if n.startswith(("layer_of_mine", "genbound_user"))]:
            del sys.modules[name]
        status = main([
            "evaluate", "tuned.safetensors", "init.safetensors", "--model", "nets.py:Net", "--data", "nets.py:data",
            "--loss", "nets.py:loss", "--measures", "losses,hessian_trace,displacement_norm", "--out", out, *more,
        ])  # fmt: skip
        assert status == 0, capsys.readouterr().err
        return json.loads((tmp_path / out / "results.json").read_text())["quantities"]

    yield measure
    for name in [n for n in sys.modules if n.startswith(("layer_of_mine", "genbound_user"))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("nets.py", "self.fc(x + act", "self.fc(act"),
        ("nets.py", "torch.randn(30, 4", "torch.rand(30, 4"),
        ("nets.py", 'reduction="none")', 'reduction="none") * 2'),
        ("layer_of_mine.py", "x.tanh()", "x.sigmoid()"),
    ],
    ids=["model", "data", "loss", "helper"],
)
def test_changed_files_are_another_network(files, tmp_path, file, before, after):
    first = files("run")
    text = (tmp_path / file).read_text()
    assert before in text
    (tmp_path / file).write_text(text.replace(before, after))
    second = files("run")
    assert second == files("fresh") and second["losses"] != first["losses"]
    (tmp_path / file).write_text(text)
    stored = finished(tmp_path / "run")
    assert files("run") == first and finished(tmp_path / "run") == stored


def test_other_batches_of_files_reuse_all_that_is_finished(files, tmp_path):
    first = files("run")
    stored = finished(tmp_path / "run")
    for more in (("--batch-size", "4"), ("--memory", "1"), ("--tag", "a=1"), ("--delta", "0.1")):
        assert files("run", *more) == first and finished(tmp_path / "run") == stored
    assert len(stored) == 3


def test_a_config_beside_the_weights_is_part_of_the_network(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        for seed, name in enumerate(("tuned", "init")):
            torch.manual_seed(seed)
            config = transformers.BertConfig(
                vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8,
                max_position_embeddings=8, num_labels=2, initializer_range=1.0,
            )  # fmt: skip
            transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / name)
    (tmp_path / "samples.py").write_text(
        "import torch\ndef data():\n    x = torch.arange(48).reshape(8, 6) * 7 % 20\n"
        "    return [({'input_ids': x}, torch.arange(8) % 2)]\n"
    )

    def measure(out):
        assert not main([
            "evaluate", str(tmp_path / "tuned"), str(tmp_path / "init"), "--data",
            f"{tmp_path / 'samples.py'}:data", "--measures", "losses,displacement_norm", "--out", str(tmp_path / out),
        ]), capsys.readouterr().err  # fmt: skip
        return json.loads((tmp_path / out / "results.json").read_text())["quantities"]

    first = measure("run")
    stored = finished(tmp_path / "run")
    assert measure("run") == first and finished(tmp_path / "run") == stored
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))
    second = measure("run")
    assert second["losses"] != first["losses"] and second == measure("fresh")
