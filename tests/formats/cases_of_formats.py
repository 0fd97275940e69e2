"""Checkpoints in every format, each with the plain in-memory pair that it must agree with.

A case writes its files into a folder and returns what genbound is given and what is true. The truth is put together
from the modules' own state dicts with torch alone.
"""

import argparse
import collections
import copy
import sys
import types
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.mix = nn.Linear(8, 5)
        self.fc = nn.Linear(5, classes)

    def forward(self, x):
        return self.fc(self.mix(self.norm(self.stem(x)).flatten(1)).tanh())

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Net()

    def forward(self, x):
        return self.backbone(x)

class Unused(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(3, 3)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 6, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, x):
        return self.decode(self.mix(self.embed(x)).mean(1).tanh())
"""
nets_module = types.ModuleType("nets_of_formats")
sys.modules["nets_of_formats"] = nets_module  # pickling a whole module looks its class up here
exec(compile(NETS, "nets", "exec"), vars(nets_module))
Net, Wrapped, Unused, Tied = (getattr(nets_module, name) for name in ("Net", "Wrapped", "Unused", "Tied"))

LIT = """
import torch
import pytorch_lightning as pl
from nets import Net

class Lit(pl.LightningModule):
    def __init__(self, classes, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(classes)
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(classes))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return self.criterion(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
"""


@dataclass
class Case:
    """What genbound is given, and the truth: a model, its initial weights and the samples."""

    ckpt: object
    init: object
    model: nn.Module
    start: dict
    data: object
    options: dict = field(default_factory=dict)
    loss: str = "cross_entropy"
    says: tuple = ()


def nudge(model: nn.Module, seed: int = 1, scale: float = 0.05) -> nn.Module:
    """A fine-tuned copy: every trainable weight moves a little."""
    tuned, stream = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=stream)
    return tuned.eval()


def start_of(model: nn.Module, **zero) -> dict:
    return {name: p.detach().clone().float() for name, p in model.named_parameters()}


def images(n=6):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(3)), torch.arange(n) % 3


def nets(folder, cls=Net):
    (folder / "nets.py").write_text(NETS)
    torch.manual_seed(0)
    start = cls().eval()
    return start, nudge(start)


def plain(folder, ckpt, init, cls=Net, data=None, model=None, **more):
    """A case of one of the nets above: ``ckpt`` and ``init`` map a module to what is saved (a path)."""
    start, tuned = nets(folder, cls)
    options = {"model": f"{folder}/nets.py:{cls.__name__}"} if model is None else {"model": model}
    return Case(
        ckpt(tuned),
        init(start),
        tuned,
        start_of(start),
        data or images(),
        {**options, **more.pop("options", {})},
        **more,
    )


def torch_save(path, wrap=lambda state: state, **options):
    def write(module):
        torch.save(wrap(module.state_dict()), path, **options)
        return path

    return write


def tensors_save(path, change=lambda t: t, prefix=""):
    def write(module):
        save_file({prefix + k: change(v.clone()).contiguous() for k, v in module.state_dict().items()}, path)
        return path

    return write


def prefixed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


def training(state):
    """What a script of the usual kind keeps: optimizer, scheduler, arguments, scores, random states."""
    parameters = [nn.Parameter(torch.ones(3, 2))]
    optimizer = torch.optim.Adam(parameters)
    parameters[0].sum().backward()
    optimizer.step()
    return {
        "model": state, "optimizer": optimizer.state_dict(), "epoch": 3, "best_acc": np.float64(0.9), "loss": torch.tensor(0.3),
        "args": argparse.Namespace(lr=0.1, data="x"), "rng": torch.get_rng_state(), "history": collections.defaultdict(list, a=[1]),
        "scheduler": {"last_epoch": 3},
    }  # fmt: skip


def whole(path):
    def write(module):
        torch.save(nn.DataParallel(module), path)
        return path

    return write


def infix(state):
    """FSDP, activation checkpointing and torch.compile, around submodules and around the whole."""
    put = {"stem.": "stem._checkpoint_wrapped_module.", "mix.": "mix._orig_mod.module."}
    named = {}
    for name, value in state.items():
        for old, new in put.items():
            name = name.replace(old, new, 1) if name.startswith(old) else name
        named["_forward_module._fsdp_wrapped_module." + name] = value
    return named


def averaged(path):
    def write(module):
        torch.save(torch.optim.swa_utils.AveragedModel(module).state_dict(), path)
        return path

    return write


def lightning(folder, model):
    pl = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    start, _ = nets(folder)
    (folder / "lit.py").write_text(LIT)
    space: dict = {}
    exec(compile(LIT.replace("from nets import", "from nets_of_formats import"), "lit", "exec"), space)
    lit = space["Lit"](3)
    lit.net.load_state_dict(start.state_dict())
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(lit, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images()), batch_size=6))
    trainer.save_checkpoint(folder / "last.ckpt")
    tensors_save(folder / "init.safetensors")(start)
    tuned = Net().eval()
    tuned.load_state_dict(lit.net.state_dict())
    state = start_of(start)
    if model == "Lit":
        truth = nn.ModuleDict({"net": tuned})
        truth.forward = lambda x: tuned(x)
        return Case(
            folder / "last.ckpt", folder / "init.safetensors", truth, {f"net.{k}": v for k, v in state.items()}, images(),
            {"model": f"{folder}/lit.py:Lit"},
        )  # fmt: skip
    return Case(
        folder / "last.ckpt", folder / "init.safetensors", tuned, state, images(), {"model": f"{folder}/nets.py:Net"}
    )


def frozen(folder):
    start, _ = nets(folder)
    start.stem.requires_grad_(False)
    tuned = nudge(start)
    torch_save(folder / "a.pt")(tuned), torch_save(folder / "b.pt")(start)
    return Case(folder / "a.pt", folder / "b.pt", tuned, start_of(start), images(), {"model": f"{folder}/nets.py:Net"})


def distilled(folder):
    """A student beside its teacher, of which only the student is measured."""
    start, tuned = nets(folder)
    state = prefixed("student.")(tuned.state_dict()) | {
        "teacher.big.weight": torch.ones(7, 7),
        "criterion.scale": torch.ones(2),
    }
    torch.save({"state_dict": state}, folder / "a.pt")
    torch_save(folder / "b.pt")(start)
    return Case(
        folder / "a.pt", folder / "b.pt", tuned, start_of(start), images(), {"model": f"{folder}/nets.py:Net"},
        says=("teacher.big.weight",),
    )  # fmt: skip


def beside_average(folder):
    start, tuned = nets(folder)
    other = nudge(tuned, 9)
    torch.save({"state_dict": other.state_dict(), "state_dict_ema": tuned.state_dict()}, folder / "a.pt")
    torch_save(folder / "b.pt")(start)
    return Case(
        folder / "a.pt", folder / "b.pt", tuned, start_of(start), images(),
        {"model": f"{folder}/nets.py:Net", "entry": "state_dict_ema"}, says=("state_dict",),
    )  # fmt: skip


def without_backbone(folder):
    start, tuned = nets(folder, Wrapped)
    torch_save(folder / "a.pt")(tuned), torch_save(folder / "b.pt")(start.backbone)
    return Case(
        folder / "a.pt", folder / "b.pt", tuned, start_of(start), images(), {"model": f"{folder}/nets.py:Wrapped"}
    )


def rounded(folder, dtype, suffix):
    start, tuned = (module.to(dtype) for module in nets(folder))
    (tensors_save if suffix == "safetensors" else torch_save)(folder / f"a.{suffix}")(tuned)
    (tensors_save if suffix == "safetensors" else torch_save)(folder / f"b.{suffix}")(start)
    return Case(
        folder / f"a.{suffix}", folder / f"b.{suffix}", tuned.float(), start_of(start), images(),
        {"model": f"{folder}/nets.py:Net"}, says=("widened to float32",),
    )  # fmt: skip


def tied(folder):
    data = torch.arange(24).view(6, 4) % 6, torch.arange(6)
    return plain(folder, torch_save(folder / "a.pt"), torch_save(folder / "b.pt"), Tied, data)


def unused(folder):
    return plain(folder, torch_save(folder / "a.pt"), torch_save(folder / "b.pt"), Unused)


def new_head(folder):
    case = plain(folder, torch_save(folder / "a.pt"), torch_save(folder / "b.pt"))
    torch.save(Net(7).state_dict() | {k: v for k, v in case.start.items() if "fc" not in k}, folder / "b.pt")
    torch.save(
        {k: torch.ones(7, *v.shape[1:]) if k.startswith("fc.") else v for k, v in torch.load(folder / "b.pt").items()},
        folder / "b.pt",
    )
    case.start |= {name: torch.zeros_like(value) for name, value in case.start.items() if name.startswith("fc.")}
    buffers = {name: value for name, value in torch.load(folder / "b.pt").items() if "norm" in name}
    case.model.load_state_dict({**case.model.state_dict(), **{k: v for k, v in buffers.items() if "running" in k}})
    torch.save(case.model.state_dict(), folder / "a.pt")
    case.says = ("counts as zero",)
    return case


# transformers

SMALL = dict(
    vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16,
    pad_token_id=0,
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
        vocab_size=50, n_embd=8, n_layer=2, n_head=2, n_positions=16, num_labels=3, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    if head == "LMHeadModel":
        # Files hold labels as transformers wants them, beside their tokens; the truth has them where they are predicted.
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


# adapters


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


P = "a.pt"
CASES = {
    "safetensors": lambda f: plain(f, tensors_save(f / "a.safetensors"), tensors_save(f / "b.safetensors")),
    "pt": lambda f: plain(f, torch_save(f / P), torch_save(f / "b.pth")),
    "bin beside safetensors": lambda f: plain(f, torch_save(f / "a.bin"), tensors_save(f / "b.safetensors")),
    "before torch 1.6": lambda f: plain(
        f, torch_save(f / P, _use_new_zipfile_serialization=False), torch_save(f / "b.pt", _use_new_zipfile_serialization=False)
    ),
    "directory with one file": lambda f: plain(f, lambda m: (tensors_save(f / "d" / "w.safetensors")(m), f / "d")[1] if (f / "d").mkdir() is None else None, torch_save(f / "b.pt")),
    "whole module": lambda f: plain(f, whole(f / P), whole(f / "b.pt")),
    "training checkpoint": lambda f: plain(f, torch_save(f / P, training), torch_save(f / "b.pt"), says=("entry 'model'",)),
    "scripts of torch and timm": lambda f: plain(
        f, torch_save(f / "best.pth.tar", lambda s: {"epoch": 1, "arch": "net", "state_dict": prefixed("module.")(s)}), torch_save(f / "b.pt")
    ),
    "DeepSpeed": lambda f: plain(f, torch_save(f / P, lambda s: {"module": s, "optimizer": None, "ds_version": "0"}), torch_save(f / "b.pt")),
    "DDP": lambda f: plain(f, torch_save(f / P, prefixed("module.")), torch_save(f / "b.pt")),
    "torch.compile": lambda f: plain(f, tensors_save(f / "a.safetensors", prefix="_orig_mod."), torch_save(f / "b.pt")),
    "compiled DDP": lambda f: plain(f, torch_save(f / P, prefixed("_orig_mod.module.")), torch_save(f / "b.pt", prefixed("module."))),
    "DDP of a compiled training class": lambda f: plain(
        f, torch_save(f / P, prefixed("module._orig_mod.model.")), torch_save(f / "b.pt", prefixed("model.module."))
    ),
    "FSDP, checkpointing and compile inside": lambda f: plain(f, torch_save(f / P, infix), torch_save(f / "b.pt")),
    "averaged weights alone": lambda f: plain(f, torch_save(f / P, lambda s: {"ema_state_dict": s, "step": 3}), torch_save(f / "b.pt")),
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
        f, data=tokens(labels=torch.linspace(-1, 1, 6)), config={"num_labels": 1, "problem_type": "regression"}, loss="squared_error"
    ),
    "BERT, several labels": lambda f: bert(
        f, data=tokens(labels=torch.eye(3).repeat(2, 1)), config={"problem_type": "multi_label_classification"}, loss="multi_label"
    ),
    "BERT, more tokens": resized,
    "RoBERTa": lambda f: family(f, "Roberta", "Model", "ForSequenceClassification"),
    "DistilBERT": lambda f: family(f, "DistilBert", "Model", "ForSequenceClassification", dim=8, hidden_dim=16, n_layers=2, n_heads=2),
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
    "LoRA, ranks and biases": lambda f: lora(f, "adapter", rank_pattern={"query": 3}, alpha_pattern={"value": 2}, bias="lora_only"),
    "LoRA on the table of tokens": lambda f: lora(f, "adapter", "llama", ("q_proj", "embed_tokens")),
    "AdaLoRA": adaptive,
    "DoRA": lambda f: lora(f, "adapter", use_dora=True),
    "LoRA on a network of the user's": lora_on_a_net,
}  # fmt: skip
