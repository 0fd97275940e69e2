"""The merged network is the one that the adapter makes, also where the base ties weights or LoRA has a variant."""

import copy
import re

import pytest
import torch
from torch import nn

from genbound.checkpoints.adapter_merging import merge_attached
from genbound.checkpoints.architecture import build_pair
from genbound.errors import GenboundError

peft = pytest.importorskip("peft", reason="peft is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of the libraries

WORDS, HEAD = "transformer.wte.weight", "lm_head.weight"


@torch.no_grad()
def adapted(folder, **config):
    """A tied GPT-2 and a trained adapter as files; PeftModel's logits for ``[6, 7]`` tokens, and those tokens."""
    torch.manual_seed(0)
    found = transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5,
                                    bos_token_id=3, eos_token_id=3)  # fmt: skip
    base = transformers.GPT2LMHeadModel(found)
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, **config))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder / "adapter")
    start = transformers.GPT2LMHeadModel.from_pretrained(folder / "base")
    tokens = torch.randint(16, (6, 7))
    return peft.PeftModel.from_pretrained(start, folder / "adapter").eval()(tokens).logits, tokens


def check(pair, logits, tokens):
    with torch.no_grad():
        assert torch.allclose(pair.model(tokens).logits, logits, atol=1e-4)
    for name, (left, right) in pair.factors.items():
        assert torch.allclose(left @ right, pair.params[name] - pair.init[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("target", "moved"), [("lm_head", [HEAD]), ("wte", [WORDS]), ("wte lm_head", [WORDS, HEAD]), ("c_attn", [])]
)
def test_an_adapted_use_of_a_tied_weight_is_untied(tmp_path, target, moved):
    logits, tokens = adapted(tmp_path, target_modules=target.split())
    pair = build_pair(tmp_path / "adapter", tmp_path / "base")
    check(pair, logits, tokens)
    assert [name for name in (WORDS, HEAD) if not torch.equal(pair.params.get(name, pair.init[WORDS]), pair.init[WORDS])
            ] == moved  # fmt: skip
    assert (HEAD in pair.params) == bool(moved) == ("untied" in pair.rule)
    assert all(torch.equal(pair.init[name], pair.init[WORDS]) for name in moved)


def test_uses_that_an_adapter_changes_alike_stay_tied(tmp_path):
    logits, tokens = adapted(tmp_path, target_modules=["c_attn"], trainable_token_indices=[1, 2])
    pair = build_pair(tmp_path / "adapter", tmp_path / "base")
    check(pair, logits, tokens)
    assert (
        (pair.params[WORDS] - pair.init[WORDS]).norm() > 0.1 and HEAD not in pair.params and "untied" not in pair.rule
    )


def test_seeds_of_an_untied_head(tmp_path):
    adapted(tmp_path, target_modules=["lm_head"])
    pair = build_pair(tmp_path / "adapter", tmp_path / "base", head="seed:3")
    torch.manual_seed(3)
    drawn = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_pretrained(tmp_path / "base")).lm_head.weight
    assert torch.equal(pair.init[HEAD], drawn)


class Tied(nn.Module):
    """Two layers of one weight; a file of safetensors has it once."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_a_tied_network_of_ones_own(tmp_path):
    from safetensors.torch import save_model

    torch.manual_seed(0)
    base = Tied()
    save_model(base, tmp_path / "base.safetensors")
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["b"]))
    nn.init.normal_(model.base_model.model.b.lora_B["default"].weight)
    model.save_pretrained(tmp_path / "adapter")
    pair = build_pair(tmp_path / "adapter", tmp_path / "base.safetensors", model=Tied)
    x = torch.randn(5, 4)
    with torch.no_grad():
        assert torch.allclose(pair.model(x), model.eval()(x), atol=1e-5)
    assert torch.equal(pair.params["a.weight"], base.a.weight) and torch.equal(pair.init["b.weight"], base.a.weight)


@pytest.mark.parametrize("variant", ["kasa", "bd", "dora", "plain"])
def test_factors_are_those_of_plain_lora(tmp_path, variant):
    kinds = peft.tuners.lora.config
    if not hasattr(kinds, "KasaConfig") or not hasattr(kinds, "BdLoraConfig"):
        pytest.skip("this version of peft has no such variant")
    config = {"kasa": lambda: {"kasa_config": kinds.KasaConfig()}, "dora": lambda: {"use_dora": True},
              "bd": lambda: {"use_bdlora": kinds.BdLoraConfig(target_modules_bd_a=["lm_head"], nblocks=2)},
              "plain": dict}[variant]()  # fmt: skip
    logits, tokens = adapted(tmp_path, target_modules=["lm_head"], **config)
    pair = build_pair(tmp_path / "adapter", tmp_path / "base")
    check(pair, logits, tokens)
    assert set(pair.factors) == ({HEAD} if variant == "plain" else set())


def test_a_merge_that_is_another_network_is_refused(tmp_path, monkeypatch):
    adapted(tmp_path, target_modules=["c_attn"])
    start = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(start, tmp_path / "adapter")
    layer = peft.tuners.lora.layer.Linear
    monkeypatch.setattr(layer, "get_delta_weight", lambda self, adapter: torch.zeros_like(self.weight))
    with pytest.raises(GenboundError, match="makes another network than beside them"):
        merge_attached(model)


def test_an_adapter_that_its_file_does_not_describe_is_refused(tmp_path):
    adapted(tmp_path, target_modules=["c_attn"])
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(re.sub('"peft_type": "LORA"', '"peft_type": "ADAMSS"', file.read_text()))
    if "ADAMSS" not in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
        pytest.skip("this version of peft has no such adapter")
    with pytest.raises(GenboundError, match="does not say which rows"):
        build_pair(tmp_path / "adapter", tmp_path / "base")


def test_biases_of_a_head_that_is_trained_in_full(tmp_path):
    """PEFT writes them twice where all biases are trained, and has a place for one of the two."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=8, num_labels=3)  # fmt: skip
    base = transformers.BertForSequenceClassification(config)
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], bias="all"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "adapter")
    merged = dict(model.eval().merge_and_unload().named_parameters())
    pair = build_pair(tmp_path / "adapter", tmp_path / "base")
    assert all(torch.allclose(value, merged[name], atol=1e-6) for name, value in pair.params.items())
