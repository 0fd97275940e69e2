"""Checkpoints of transformers: a model with a head, fine-tuned from its base model."""

import argparse

import torch
from small_checkpoints import Case, nudge, prefixed, start_of

SMALL = dict(
    vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=16, pad_token_id=0,
)  # fmt: skip


def tokens(n=6, labels=None):
    ids = torch.randint(1, 50, (n, 7), generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "labels": torch.arange(n) % 3 if labels is None else labels}


def hugging_face(
    folder, head, base, config, data, save=None, loss="cross_entropy", says=("counts as zero",), scale=0.05, **options
):
    """A model with a head, fine-tuned from its base model's checkpoint, which lacks the head."""
    import transformers

    torch.manual_seed(0)
    bottom = getattr(transformers, base)(config).eval()
    bottom.save_pretrained(folder / "base")
    top = getattr(transformers, head)(config).eval()
    inside = f"{top.base_model_prefix}." if head != base else ""
    loaded = {inside + name: value for name, value in bottom.state_dict().items() if inside + name in top.state_dict()}
    top.load_state_dict(loaded, strict=False)
    start = {n: v if n in loaded else torch.zeros_like(v) for n, v in start_of(top).items()}
    tuned = nudge(top, scale=0.005 if says[:1] == ("resized",) else scale)
    (save or (lambda model, path: model.save_pretrained(path)))(tuned, folder / "tuned")
    return Case(folder / "tuned", folder / "base", tuned, start, data, options, loss, says)


def bert(
    folder, head="SequenceClassification", data=None, save=None, base="BertModel", says=("counts as zero",), **config
):
    import transformers

    found = transformers.BertConfig(**{**SMALL, "num_labels": 3, **config.pop("config", {})})
    return hugging_face(folder, f"BertFor{head}", base, found, data or tokens(), save, says=says, **config)


def token_labels():
    labels = torch.arange(42).view(6, 7) % 3
    labels[:, 0], labels[2, 3:] = -100, -100
    return tokens(labels=labels)


def family(folder, name, base, head, **config):
    import transformers

    found = getattr(transformers, f"{name}Config")(**{**SMALL, "num_labels": 3, **config})
    return hugging_face(folder, f"{name}{head}", f"{name}{base}", found, tokens(3))


def gpt2(folder, head):
    import transformers

    config = transformers.GPT2Config(
        vocab_size=50, n_embd=8, n_layer=2, n_head=2, n_positions=16, num_labels=3, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    if head == "LMHeadModel":
        # Files hold labels as transformers wants them, beside their tokens; the truth has them where they are
        # predicted.
        labels = torch.roll(tokens(2)["input_ids"], -1, 1)
        labels[:, -1] = -100
        data = tokens(2, labels=labels)
        return hugging_face(folder, "GPT2LMHeadModel", "GPT2Model", config, data, says=(), scale=0.005)
    return hugging_face(folder, f"GPT2{head}", "GPT2Model", config, tokens())


def llama(folder, head, base):
    import transformers

    config = transformers.LlamaConfig(**SMALL, num_labels=3, num_key_value_heads=1)
    data = tokens(2, labels=tokens(2)["input_ids"].roll(-1, 1)) if head == "LlamaForCausalLM" else tokens(3)
    return hugging_face(folder, head, base, config, data, says=() if head == base else ("counts as zero",))


def vit(folder):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    pixels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return hugging_face(
        folder, "ViTForImageClassification", "ViTModel", config, {"pixel_values": pixels, "labels": torch.arange(6) % 3}
    )


def convnext(folder):
    import transformers

    config = transformers.ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, num_labels=3)
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return hugging_face(
        folder,
        "ConvNextForImageClassification",
        "ConvNextModel",
        config,
        {"pixel_values": pixels, "labels": torch.arange(3)},
    )


def as_bin(prefix=""):
    def save(model, path):
        model.config.save_pretrained(path)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(path)
        torch.save({prefix + name: value for name, value in model.state_dict().items()}, path / "pytorch_model.bin")

    return save


def trainer_folder(model, path):
    """What the Trainer leaves in checkpoint-500."""
    model.save_pretrained(path)
    torch.save({"state": {}, "param_groups": []}, path / "optimizer.pt")
    torch.save({"last_epoch": 1}, path / "scheduler.pt")
    torch.save(argparse.Namespace(lr=1), path / "training_args.bin")
    (path / "trainer_state.json").write_text("{}")


def resized(folder):
    import transformers

    case = bert(folder, says=("resized", "counts as zero"))
    config = transformers.BertConfig(**SMALL, num_labels=3)
    torch.manual_seed(5)
    model = transformers.BertForSequenceClassification(config).eval()
    model.load_state_dict(case.model.state_dict())
    model.resize_token_embeddings(53)
    model.eval().save_pretrained(folder / "tuned")
    name = "bert.embeddings.word_embeddings.weight"
    start = {**case.start, name: torch.cat([case.start[name], torch.zeros(3, 8)])}
    return Case(folder / "tuned", folder / "base", model, start, case.data, {}, says=case.says)


def resized_language_model(folder):
    """One matrix is both table and output layer: its new rows count from zero once."""
    case = gpt2(folder, "LMHeadModel")
    case.model.resize_token_embeddings(53)
    case.model.eval().save_pretrained(folder / "tuned")
    name = "transformer.wte.weight"
    case.start[name] = torch.cat([case.start[name], torch.zeros(3, 8)])
    case.says = ("resized",)
    return case


def in_lightning(folder):
    """A transformers model as an attribute of a training class, saved by Lightning, described by the base's config."""
    case = bert(folder)
    torch.save(
        {"state_dict": prefixed("model.")(case.model.state_dict()), "epoch": 1, "pytorch-lightning_version": "2.6.6"},
        folder / "last.ckpt",
    )
    case.ckpt, case.options = folder / "last.ckpt", {"model": "hf:AutoModelForSequenceClassification"}
    return case
