"""Adapters of peft, each with the merged weights that it must agree with."""

import copy

import pytest
import torch
from safetensors import safe_open
from small_checkpoints import Case, images, nets, nudge, start_of, torch_save
from transformers_formats import SMALL, tokens


def lora(folder, save, kind="bert", target=("query", "value"), method=None, **config):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    import transformers

    torch.manual_seed(0)
    if kind == "bert":
        found = transformers.BertConfig(**SMALL, num_labels=3)
        bottom, head, inside = transformers.BertModel(found), "BertForSequenceClassification", "bert."
    elif kind == "llama":
        found = transformers.LlamaConfig(**SMALL, num_labels=3, num_key_value_heads=1)
        bottom, head, inside = transformers.LlamaModel(found), "LlamaForSequenceClassification", "model."
    else:
        found = transformers.GPT2Config(
            vocab_size=50,
            n_embd=8,
            n_layer=2,
            n_head=2,
            n_positions=16,
            num_labels=3,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        bottom, head, inside = transformers.GPT2Model(found), "GPT2ForSequenceClassification", "transformer."
    bottom.eval().save_pretrained(folder / "base")
    top = getattr(transformers, head)(found).eval()
    loaded = {inside + name: value for name, value in bottom.state_dict().items() if inside + name in top.state_dict()}
    top.load_state_dict(loaded, strict=False)
    start = {n: v if n in loaded else torch.zeros_like(v) for n, v in start_of(top).items()}
    settings = method or peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=6, target_modules=list(target), fan_in_fan_out=kind == "gpt2", **config
    )
    adapted = nudge(peft.get_peft_model(top, settings), scale=0.1)
    merged = copy.deepcopy(adapted).merge_and_unload().eval()
    (merged if save == "merged" else adapted).save_pretrained(folder / "tuned")
    if config.get("bias") == "lora_only" and save != "merged":
        with safe_open(folder / "tuned" / "adapter_model.safetensors", "pt") as file:
            if not any(name.endswith("base_layer.bias") for name in file.keys()):  # noqa: SIM118 (no dict)
                pytest.skip("this version of peft loses biases on saving")
    says = () if save == "merged" else ("two factors" if method is None and not config.get("use_dora") else "adapter",)
    return Case(folder / "tuned", folder / "base", merged, start, tokens(), says=says)


def adaptive(folder):
    """Three factors, of which the middle one is diagonal."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    method = peft.AdaLoraConfig(task_type="SEQ_CLS", target_modules=["query"], total_step=10)
    return lora(folder, "adapter", method=method)


def lora_on_a_net(folder):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    start, _ = nets(folder)
    adapted = nudge(
        peft.get_peft_model(copy.deepcopy(start), peft.LoraConfig(r=2, target_modules=["mix"], modules_to_save=["fc"])),
        scale=0.1,
    )
    adapted.save_pretrained(folder / "tuned")
    torch_save(folder / "b.pt")(start)
    merged = adapted.merge_and_unload().eval()
    return Case(
        folder / "tuned",
        folder / "b.pt",
        merged,
        start_of(start),
        images(),
        {"model": f"{folder}/nets.py:Net"},
        says=("two factors",),
    )
