"""Architectures: which rule chooses, what counts as the head, and that building a model disturbs nothing."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genbound.checkpoints.architecture import build_pair
from genbound.checkpoints.heads import head_names
from genbound.errors import GenboundError

NETS = """
import torch
print("this goes to stderr")
torch.manual_seed(99)

class Net(torch.nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU())
        self.fc = torch.nn.Linear(5, classes)

    def forward(self, x):
        return self.fc(self.body(x))

def make():
    return Net()

def seven():
    return Net(7)
"""


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.fc = nn.Linear(5, classes)

    def forward(self, x):
        return self.fc(self.body(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.inner = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 6, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, x):
        return self.lm_head(self.inner(self.embed(x)).mean(1))


@pytest.fixture
def files(tmp_path):
    """Two state dicts of one net, and the file that defines it."""
    torch.manual_seed(0)
    tuned, start = Net(), Net()
    torch.save(tuned.state_dict(), tmp_path / "ckpt.pt")
    save_file(start.state_dict(), tmp_path / "init.safetensors")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path, tuned, start


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_factory_file(files, capsys):
    folder, tuned, start = files
    pair = build_pair(folder / "ckpt.pt", folder / "init.safetensors", f"{folder}/nets.py:make")
    assert not pair.model.training
    same(dict(pair.model.state_dict()), dict(tuned.state_dict()))
    same(pair.init, {name: p.detach() for name, p in start.named_parameters()})
    assert list(pair.init) == [name for name, _ in pair.model.named_parameters()]
    assert pair.init_buffers["body.1.running_mean"].shape == (5,)
    assert pair.head == ("fc.weight", "fc.bias")
    assert pair.head_note == "" and pair.alignment.new_head == ()
    assert "nets.py:make" in pair.rule
    assert len(pair.provenance["checkpoint"]["sha256"]) == 64
    assert capsys.readouterr().out == ""
    assert not (folder / "__pycache__").exists()


def test_module_is_copied_and_callable_is_called(files):
    folder, tuned, _ = files
    module = Net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for model in (module, Net, lambda: Net()):
        pair = build_pair(folder / "ckpt.pt", folder / "init.safetensors", model)
        same(dict(pair.model.state_dict()), dict(tuned.state_dict()))
    same(dict(module.state_dict()), before)
    assert module.training


def test_sidecar(files):
    folder, _, _ = files
    (folder / "genbound.yaml").write_text("model: nets.py:make\n")
    with pytest.raises(GenboundError, match="trust_remote_code"):  # the file may have come with the checkpoint
        build_pair(folder / "ckpt.pt", folder / "init.safetensors")
    pair = build_pair(folder / "ckpt.pt", folder / "init.safetensors", trust_remote_code=True)
    assert "genbound.yaml" in pair.rule and pair.model is not None


def test_bare_state_dict_gives_weights_only(files):
    folder, tuned, start = files
    pair = build_pair(folder / "ckpt.pt", folder / "init.safetensors")
    assert pair.model is None and "--model" in pair.rule
    same(pair.params, {name: p.detach() for name, p in tuned.named_parameters()})
    same(pair.init, {name: p.detach() for name, p in start.named_parameters()})


def test_weights_only_head_of_another_size(files):
    folder, _, _ = files
    save_file(Net(7).state_dict(), folder / "init.safetensors")
    pair = build_pair(folder / "ckpt.pt", folder / "init.safetensors")
    assert pair.head == ("fc.weight", "fc.bias")
    assert "counts as zero" in pair.head_note and not pair.init["fc.weight"].any()


@pytest.mark.parametrize(
    "ours, theirs", [("module.", "_orig_mod."), ("model.module.", ""), ("_orig_mod.module.", "model.")]
)
@pytest.mark.parametrize("model", [None, Net])
def test_prefixes(files, ours, theirs, model):
    folder, tuned, start = files
    torch.save({"state_dict": {ours + k: v for k, v in tuned.state_dict().items()}, "epoch": 3}, folder / "ckpt.pt")
    torch.save({"model": {theirs + k: v for k, v in start.state_dict().items()}}, folder / "init.pt")
    pair = build_pair(folder / "ckpt.pt", folder / "init.pt", model)
    values = {name.removeprefix(ours): tensor for name, tensor in pair.init.items()}
    same(values, {name: p.detach() for name, p in start.named_parameters()})


@pytest.mark.parametrize("kept", ["embed.weight", "lm_head.weight"])
def test_tied_weight_by_either_name(tmp_path, kept):
    torch.manual_seed(0)
    tuned, start = Tied(), Tied()
    torch.save(tuned.state_dict(), tmp_path / "ckpt.pt")
    state = {name: value for name, value in start.state_dict().items() if "inner" in name or name == kept}
    save_file(state, tmp_path / "init.safetensors")
    pair = build_pair(tmp_path / "ckpt.pt", tmp_path / "init.safetensors", Tied)
    assert torch.equal(pair.init["embed.weight"], start.embed.weight)
    assert pair.model.lm_head.weight is pair.model.embed.weight
    assert pair.head == ()  # the head is the embedding, not the last block
    assert set(build_pair(tmp_path / "ckpt.pt", tmp_path / "ckpt.pt").params) == set(pair.params)


def test_half_precision_is_kept(tmp_path):
    net = Net()
    torch.save(net.half().state_dict(), tmp_path / "ckpt.pt")
    pair = build_pair(tmp_path / "ckpt.pt", tmp_path / "ckpt.pt", Net)
    assert pair.model.fc.weight.dtype == pair.init["fc.weight"].dtype == torch.float16


@pytest.mark.parametrize("policy", ["init", "zero", "exclude", "seed:5"])
@pytest.mark.parametrize("classes", [3, 7])
def test_head_policies(files, policy, classes):
    folder, _, _ = files
    start = Net(classes)
    save_file(start.state_dict(), folder / "init.safetensors")
    pair = build_pair(folder / "ckpt.pt", folder / "init.safetensors", Net, head=policy)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = Net().fc.weight.detach()
    zero = torch.zeros(3, 5)
    own = start.fc.weight.detach() if classes == 3 else zero
    expected = {"init": own, "zero": zero, "exclude": own, "seed:5": drawn}[policy]
    assert torch.equal(pair.init["fc.weight"], expected)
    assert pair.excluded == (pair.head if policy == "exclude" else ())
    assert bool(pair.head_note) == (policy != "init" or classes == 7)
    assert torch.equal(pair.init["body.0.weight"], start.body[0].weight)


@pytest.mark.parametrize("policy", ["init", "seed:5"])
def test_random_states_are_untouched(files, policy):
    folder, _, _ = files
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    build_pair(folder / "ckpt.pt", folder / "init.safetensors", f"{folder}/nets.py:make", head=policy)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


@pytest.mark.parametrize(
    "model, head",
    [
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), ("2.weight", "2.bias")),
        (nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), ("0.weight", "0.bias")),
        (nn.ModuleDict({"module": Net()}), ("module.fc.weight", "module.fc.bias")),
        (nn.ModuleDict({"fc": nn.Linear(2, 2), "z": nn.Linear(2, 2)}), ("fc.weight", "fc.bias")),
        (nn.LayerNorm(3), ()),
    ],
)
def test_head_names(model, head):
    assert head_names(model) == head


def test_another_seed_policy_without_a_factory(files):
    folder, _, _ = files
    for model in (None, Net()):
        with pytest.raises(GenboundError, match="factory"):
            build_pair(folder / "ckpt.pt", folder / "init.safetensors", model, head="seed:1")


# transformers


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """Directories of tiny random models: bert (3 classes), its base, its masked model, gpt2."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    small = dict(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=3,
    )
    bert = transformers.BertConfig(**small)
    gpt = transformers.GPT2Config(
        vocab_size=50,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=16,
        num_labels=2,
        bos_token_id=49,
        eos_token_id=49,
    )
    models = {
        "bert": transformers.BertForSequenceClassification(bert),
        "bert2": transformers.BertForSequenceClassification(bert),
        "base": transformers.BertModel(bert),
        "masked": transformers.BertForMaskedLM(bert),
        "wide": transformers.BertModel(transformers.BertConfig(**{**small, "hidden_size": 12})),
        "gpt2": transformers.GPT2ForSequenceClassification(gpt),
        "gpt2lm": transformers.GPT2LMHeadModel(gpt),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return folder, models, transformers


def test_base_model_is_loaded_through_the_finetuned_class(hf):
    folder, models, _ = hf
    pair = build_pair(folder / "bert", folder / "base")
    assert type(pair.model).__name__ == "BertForSequenceClassification" and "config.json" in pair.rule
    same(dict(pair.model.state_dict()), dict(models["bert"].state_dict()))
    assert pair.head == ("classifier.weight", "classifier.bias")
    assert not pair.init["classifier.weight"].any() and "counts as zero" in pair.head_note
    for name, parameter in models["base"].named_parameters():
        assert torch.equal(pair.init[f"bert.{name}"], parameter)


def test_old_names_in_a_pytorch_model_bin(hf, tmp_path):
    folder, models, _ = hf
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in models["base"].state_dict().items()
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    pair = build_pair(folder / "bert", tmp_path)
    name = "encoder.layer.0.output.LayerNorm.weight"
    assert torch.equal(pair.init[f"bert.{name}"], models["base"].state_dict()[name])


def test_head_policies_of_transformers(hf):
    folder, models, transformers = hf
    own = build_pair(folder / "bert", folder / "bert2").init["classifier.weight"]
    assert torch.equal(own, models["bert2"].classifier.weight)
    seeded = build_pair(folder / "bert", folder / "base", head="seed:3").init["classifier.weight"]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = transformers.BertForSequenceClassification(models["bert"].config).classifier.weight
    assert torch.equal(seeded, drawn)
    assert not build_pair(folder / "bert", folder / "bert2", head="zero").init["classifier.weight"].any()


def test_state_dict_with_the_config_of_its_base(hf, tmp_path):
    """The classes are counted in the file: the base's config does not know them."""
    folder, models, _ = hf
    torch.save(models["bert"].state_dict(), tmp_path / "ckpt.pt")
    pair = build_pair(tmp_path / "ckpt.pt", folder / "base", "hf:AutoModelForSequenceClassification")
    same(dict(pair.model.state_dict()), dict(models["bert"].state_dict()))


def test_two_class_gpt2_from_its_language_model(hf):
    folder, models, _ = hf
    pair = build_pair(folder / "gpt2", folder / "gpt2lm")
    assert pair.head == ("score.weight",) and not pair.init["score.weight"].any()
    tokens = torch.tensor([[1, 2, 3, 49], [4, 5, 49, 49]])
    with torch.no_grad():  # a batch, although GPT-2 names no padding token
        logits = pair.model(input_ids=tokens, attention_mask=(tokens != 49).long()).logits
        alone = pair.model(input_ids=torch.tensor([[4, 5]])).logits
    assert torch.allclose(logits[1:], alone, atol=1e-6)


def test_language_model_ties_its_head(hf):
    folder, models, _ = hf
    pair = build_pair(folder / "gpt2lm", folder / "gpt2lm")
    assert pair.head == () and "lm_head.weight" not in pair.init
    assert pair.model.lm_head.weight is pair.model.transformer.wte.weight


def test_factory_of_a_transformers_model_sees_through_the_base_prefix(hf):
    folder, models, transformers = hf
    factory = lambda: transformers.BertForSequenceClassification(models["bert"].config)  # noqa: E731
    pair = build_pair(folder / "bert", folder / "base", factory)
    assert pair.head == ("classifier.weight", "classifier.bias")
    for name, parameter in models["base"].named_parameters():
        assert torch.equal(pair.init[f"bert.{name}"], parameter)


def test_transformers_leaves_global_state_alone(hf):
    folder, _, transformers = hf
    level, state, dtype = (
        transformers.logging.get_verbosity(),
        torch.get_rng_state(),
        torch.get_default_dtype(),
    )
    build_pair(folder / "bert", folder / "base", head="seed:1")
    assert transformers.logging.get_verbosity() == level and torch.get_default_dtype() == dtype
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "init, words", [("wide", "another architecture"), ("gpt2", "another architecture"), ("masked", "pooler")]
)
def test_init_of_another_architecture(hf, init, words):
    folder, _, _ = hf
    with pytest.raises(GenboundError, match=words) as caught:
        build_pair(folder / "bert", folder / init)
    assert "fine-tuned from" in str(caught.value)


def test_without_transformers_the_extra_is_named(hf, monkeypatch):
    folder, _, _ = hf
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(GenboundError, match=r"genbound\[hf\]"):
        build_pair(folder / "bert", folder / "base")
