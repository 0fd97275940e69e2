"""Checkpoints in every format, each with the plain in-memory pair that it must agree with.

A case writes its files into a folder and returns what genbound is given and what is true. The truth is put together
from the modules' own state dicts with torch alone.
"""

import torch
from adapter_formats import adaptive, lora, lora_on_a_net
from small_checkpoints import plain, prefixed, tensors_save, torch_save
from torch_formats import (
    averaged,
    beside_average,
    distilled,
    frozen,
    infix,
    lightning,
    new_head,
    rounded,
    tied,
    training,
    unused,
    whole,
    without_backbone,
)
from transformers_formats import (
    as_bin,
    bert,
    convnext,
    family,
    gpt2,
    in_lightning,
    llama,
    resized,
    resized_language_model,
    token_labels,
    tokens,
    trainer_folder,
    vit,
)

P = "a.pt"
CASES = {
    "safetensors": lambda f: plain(f, tensors_save(f / "a.safetensors"), tensors_save(f / "b.safetensors")),
    "pt": lambda f: plain(f, torch_save(f / P), torch_save(f / "b.pth")),
    "bin beside safetensors": lambda f: plain(f, torch_save(f / "a.bin"), tensors_save(f / "b.safetensors")),
    "before torch 1.6": lambda f: plain(
        f, torch_save(f / P, _use_new_zipfile_serialization=False),
        torch_save(f / "b.pt", _use_new_zipfile_serialization=False)
    ),
    "directory with one file": lambda f: plain(
        f, lambda m: (tensors_save(f / "d" / "w.safetensors")(m), f / "d")[1] if (f / "d").mkdir() is None else None,
        torch_save(f / "b.pt"),
    ),
    "whole module": lambda f: plain(f, whole(f / P), whole(f / "b.pt")),
    "training checkpoint": lambda f: plain(
        f, torch_save(f / P, training), torch_save(f / "b.pt"), says=("entry 'model'",),
    ),
    "scripts of torch and timm": lambda f: plain(
        f, torch_save(f / "best.pth.tar", lambda s: {"epoch": 1, "arch": "net", "state_dict": prefixed("module.")(s)}),
        torch_save(f / "b.pt")
    ),
    "DeepSpeed": lambda f: plain(
        f, torch_save(f / P, lambda s: {"module": s, "optimizer": None, "ds_version": "0"}), torch_save(f / "b.pt"),
    ),
    "DDP": lambda f: plain(f, torch_save(f / P, prefixed("module.")), torch_save(f / "b.pt")),
    "torch.compile": lambda f: plain(f, tensors_save(f / "a.safetensors", prefix="_orig_mod."), torch_save(f / "b.pt")),
    "compiled DDP": lambda f: plain(
        f, torch_save(f / P, prefixed("_orig_mod.module.")), torch_save(f / "b.pt", prefixed("module.")),
    ),
    "DDP of a compiled training class": lambda f: plain(
        f, torch_save(f / P, prefixed("module._orig_mod.model.")), torch_save(f / "b.pt", prefixed("model.module."))
    ),
    "FSDP, checkpointing and compile inside": lambda f: plain(f, torch_save(f / P, infix), torch_save(f / "b.pt")),
    "averaged weights alone": lambda f: plain(
        f, torch_save(f / P, lambda s: {"ema_state_dict": s, "step": 3}), torch_save(f / "b.pt"),
    ),
    "averaged weights beside": beside_average,
    "AveragedModel": lambda f: plain(f, averaged(f / P), torch_save(f / "b.pt")),
    "student and teacher": distilled,
    "init without the backbone's name": without_backbone,
    "Lightning, its own class": lambda f: lightning(f, "Lit"),
    "Lightning, the network": lambda f: lightning(f, "Net"),
    "float16": lambda f: rounded(f, torch.float16, "pt"),
    "bfloat16": lambda f: rounded(f, torch.bfloat16, "safetensors"),
    "frozen layer": frozen,
    "unused layer": unused,
    "tied weights": tied,
    "head of another size": new_head,
    "BERT": bert,
    "BERT, sharded": lambda f: bert(f, save=lambda m, p: m.save_pretrained(p, max_shard_size="4KB")),
    "BERT, pytorch_model.bin": lambda f: bert(f, save=as_bin()),
    "BERT, DDP in pytorch_model.bin": lambda f: bert(f, save=as_bin("module._orig_mod.")),
    "BERT, folder of the Trainer": lambda f: bert(f, save=trainer_folder),
    "BERT in Lightning": in_lightning,
    "BERT, token classification": lambda f: bert(f, "TokenClassification", token_labels()),
    "BERT, regression": lambda f: bert(
        f, data=tokens(labels=torch.linspace(-1, 1, 6)), config={"num_labels": 1, "problem_type": "regression"},
        loss="squared_error"
    ),
    "BERT, several labels": lambda f: bert(
        f, data=tokens(labels=torch.eye(3).repeat(2, 1)), config={"problem_type": "multi_label_classification"},
        loss="multi_label"
    ),
    "BERT, more tokens": resized,
    "RoBERTa": lambda f: family(f, "Roberta", "Model", "ForSequenceClassification"),
    "DistilBERT": lambda f: family(
        f, "DistilBert", "Model", "ForSequenceClassification", dim=8, hidden_dim=16, n_layers=2, n_heads=2,
    ),
    "ELECTRA": lambda f: family(f, "Electra", "Model", "ForSequenceClassification", embedding_size=8),
    "ALBERT": lambda f: family(f, "Albert", "Model", "ForSequenceClassification", embedding_size=8),
    "GPT-2, causal language model": lambda f: gpt2(f, "LMHeadModel"),
    "GPT-2, more tokens": resized_language_model,
    "GPT-2, classification": lambda f: gpt2(f, "ForSequenceClassification"),
    "Llama, causal language model": lambda f: llama(f, "LlamaForCausalLM", "LlamaForCausalLM"),
    "Llama, classification": lambda f: llama(f, "LlamaForSequenceClassification", "LlamaModel"),
    "ViT": vit,
    "ConvNeXt": convnext,
    "LoRA": lambda f: lora(f, "adapter"),
    "LoRA, merged": lambda f: lora(f, "merged"),
    "LoRA on GPT-2, ranks stabilised": lambda f: lora(f, "adapter", "gpt2", ("c_attn",), use_rslora=True),
    "LoRA, ranks and biases": lambda f: lora(
        f, "adapter", rank_pattern={"query": 3}, alpha_pattern={"value": 2}, bias="lora_only",
    ),
    "LoRA on the table of tokens": lambda f: lora(f, "adapter", "llama", ("q_proj", "embed_tokens")),
    "AdaLoRA": adaptive,
    "DoRA": lambda f: lora(f, "adapter", use_dora=True),
    "LoRA on a network of the user's": lora_on_a_net,
}  # fmt: skip
