"""Layers from shapes alone are those that a pass of numbers finds."""

import warnings
from dataclasses import replace

import pytest
import torch
from cases import CASES
from torch import nn

import genbound
from genbound.checkpoints import measurable, state_file
from genbound.cli.main import main
from genbound.network.layers_by_shape import layers_by_shape
from genbound.network.loss_functions import get_loss


@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_a_pass_of_numbers(name):
    problem = CASES[name].problem()
    positions = problem.shared_run(3)
    convex = get_loss(CASES[name].loss).convex and problem.loss.convex
    found, shape = layers_by_shape(
        problem.model, problem.batch(positions), convex, pattern=CASES[name].pattern, output=problem.output
    )
    # Whose rows are whose is not known without numbers, and with it whether samples can share a pass.
    alike = [replace(layer, by_batch=True, samples_first=True) for layer in problem.layers]
    single = {layer.name for layer in problem.layers if not layer.by_batch or not layer.samples_first}
    assert [layer.name for layer in found] == [layer.name for layer in alike]
    for one, other in zip(found, alike, strict=True):
        assert one == (replace(other, kind=one.kind) if one.name in single else other)
    assert shape.numel() == len(positions) * problem.num_outputs


def test_weights_are_not_touched_and_no_memory_is_taken():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**5, 10**5), nn.ReLU(), nn.Linear(10**5, 2))
    samples = genbound.data.samples.as_samples((torch.zeros(3, 10**5), torch.arange(3) % 2))
    found, shape = layers_by_shape(model, samples.batch([0, 1, 2]), True)
    assert [(layer.name, layer.kind, layer.positive_semidefinite) for layer in found] == [
        ("0.weight", "linear", True),
        ("2.weight", "linear", True),
    ]
    assert shape == (3, 2) and all(p.is_meta and not p.grad_fn for p in model.parameters())


class Asks(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 2)

    def forward(self, x):
        return self.dense(x if x.sum() > 0 else -x)


def test_a_pass_that_asks_for_numbers_is_refused():
    batch = genbound.data.samples.as_samples((torch.zeros(3, 4), torch.arange(3) % 2)).batch([0, 1])
    with pytest.raises(genbound.GenboundError, match="asks for numbers .*: inspect it without --no-weights"):
        layers_by_shape(Asks(), batch, True)
    with pytest.raises(genbound.GenboundError, match="does not run without numbers"):
        layers_by_shape(nn.Linear(5, 2), batch, True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A Llama and its start, and a LoRA adapter on that start, of few numbers; and data."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("pairs")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")  # peft asks transformers so
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=40,
            max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        base = transformers.LlamaForCausalLM(config)
        base.save_pretrained(folder / "base")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(folder / "base"), config).save_pretrained(
            folder / "adapter"
        )
        torch.nn.init.normal_(base.lm_head.weight)
        base.save_pretrained(folder / "tuned")
    (folder / "data.py").write_text(
        "import torch\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i):\n"
        "        ids = (torch.arange(6) * 7 + i) % 40\n"
        "        return {'input_ids': ids, 'labels': ids}\n"
        "def train(): return Data()\n"
    )
    return folder


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("which", ["tuned", "adapter"])
def test_inspect_shows_the_same_layers_without_looking_at_a_weight(pairs, which, capsys, monkeypatch):
    asked = ["inspect", str(pairs / which), str(pairs / "base"), "--data", f"{pairs / 'data.py'}:train"]

    def table(text):
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("layer "))
        return [" ".join(line.split()) for line in lines[start : lines.index("", start)]]

    assert main(asked) == 0
    wanted = table(capsys.readouterr().out)

    def look(*_):
        raise AssertionError("a weight was looked at")

    monkeypatch.setattr(measurable, "all_finite", look)
    monkeypatch.setattr(state_file, "_digest", look)
    assert main([*asked, "--no-weights"]) == 0
    out = capsys.readouterr().out
    assert table(out) == wanted and len(wanted) == 2 + 15
    assert "sha256" not in out and "numbers        none were read: nothing is checked" in out
    assert ("LORA adapter, not merged" in out) == (which == "adapter")


def test_without_data_nothing_can_be_run(pairs, capsys):
    assert main(["inspect", str(pairs / "tuned"), str(pairs / "base"), "--no-weights"]) == 2
    assert "give its architecture (--model) and --data" in capsys.readouterr().err
