"""Checkpoints as scripts of torch, Lightning and wrappers of modules write them."""

import argparse
import collections

import numpy as np
import pytest
import torch
from small_checkpoints import (
    LIT,
    Case,
    Net,
    Tied,
    Unused,
    Wrapped,
    images,
    nets,
    nudge,
    plain,
    prefixed,
    start_of,
    tensors_save,
    torch_save,
)
from torch import nn


def training(state):
    """What a script of the usual kind keeps: optimizer, scheduler, arguments, scores, random states."""
    parameters = [nn.Parameter(torch.ones(3, 2))]
    optimizer = torch.optim.Adam(parameters)
    parameters[0].sum().backward()
    optimizer.step()
    return {
        "model": state, "optimizer": optimizer.state_dict(), "epoch": 3, "best_acc": np.float64(0.9),
        "loss": torch.tensor(0.3),
        "args": argparse.Namespace(lr=0.1, data="x"), "rng": torch.get_rng_state(),
        "history": collections.defaultdict(list, a=[1]), "scheduler": {"last_epoch": 3},
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
            folder / "last.ckpt", folder / "init.safetensors", truth, {f"net.{k}": v for k, v in state.items()},
            images(), {"model": f"{folder}/lit.py:Lit"},
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
