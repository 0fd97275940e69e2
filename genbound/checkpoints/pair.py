"""A fine-tuned network and the weights it started from, under one set of names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.alignment import OPTIONAL, STATISTICS, Alignment, Signature, align, initial_value
from genbound.checkpoints.heads import head_names, matching, named_head, only_new_module
from genbound.checkpoints.state_file import StateFile
from genbound.errors import GenboundError


@dataclass
class Pair:
    """A fine-tuned network and the weights it started from.

    Attributes:
        model: the network in evaluation mode with the fine-tuned weights; ``None`` for a bare state dict, of
            which only weights can be measured.
        params: the fine-tuned weights, by the names of ``named_parameters()``. They share
            memory with ``model``.
        init: the pretrained weights under the same names, all of them.
        init_buffers: INIT's buffers, those it has.
        head: parameters of the output head.
        head_policy: ``init``, ``zero``, ``exclude`` or ``seed:N``.
        head_note: what was done about the head, empty where INIT's own is used.
        rule: which rule chose the architecture.
        alignment: which names of the files were used, and which not.
        tokenizer_dir: directory with a tokenizer, of CKPT or else of INIT.
        image_dir: directory with the settings of image preprocessing, likewise.
        provenance: path and SHA-256 of both files.
        factors: weights whose displacement is known as two factors of low rank.
        notes: what else a reader of the numbers must know: precision, entries of the files, resized embeddings.
    """

    model: nn.Module | None
    params: dict[str, Tensor]
    init: dict[str, Tensor]
    init_buffers: dict[str, Tensor]
    head: tuple[str, ...]
    head_policy: str
    head_note: str
    rule: str
    alignment: Alignment
    tokenizer_dir: Path | None
    image_dir: Path | None
    provenance: dict[str, dict[str, str]]
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def excluded(self) -> tuple[str, ...]:
        """Parameters to leave out of the layers."""
        return self.head if self.head_policy == "exclude" else ()


@dataclass
class Built:
    """A model with both files' tensors under names that it understands."""

    model: nn.Module
    ckpt: Mapping[str, Tensor]
    init: Mapping[str, Tensor]
    rule: str
    rebuild: Callable[[], nn.Module] | None
    unused: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def assemble(built: Built, ckpt: StateFile, init: StateFile, policy: str, head_weights: Sequence[str] = ()) -> Pair:
    model = built.model.eval()
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise GenboundError(f"{built.rule}: the model has lazy modules without shapes; run it once in the factory")
    head = head_names(model, head_weights)
    alignment = align(Signature.of(model), built.ckpt, built.init, head, policy)
    _fill(model, alignment, built.ckpt)
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    fresh = _seeded_head(built, policy) if policy.startswith("seed:") else {}
    start = {}
    for name, value in params.items():
        if name in alignment.matched:
            start[name] = initial_value(alignment, name, value, built.init)
        else:
            start[name] = fresh.get(name, torch.zeros_like(value)).to(value)
    buffers = {name: key for name, key in alignment.init.items() if name not in params}
    if any(built.unused):
        alignment = dataclasses.replace(alignment, unused_ckpt=built.unused[0], unused_init=built.unused[1])
    return Pair(
        model=model,
        params=params,
        init=start,
        init_buffers={name: built.init[key] for name, key in buffers.items()},
        head=head,
        head_policy=policy,
        head_note=_head_note(alignment.new_head, policy),
        rule=built.rule,
        alignment=alignment,
        tokenizer_dir=huggingface.tokenizer_folder(ckpt.directory, init.directory),
        image_dir=huggingface.image_folder(ckpt.directory, init.directory),
        provenance={"checkpoint": ckpt.provenance, "init": init.provenance},
        factors={name: pair for name, pair in built.factors.items() if name in alignment.matched},
        notes=_notes(ckpt, init, alignment),
    )


@torch.no_grad()
def _fill(model: nn.Module, alignment: Alignment, tensors: Mapping[str, Tensor]) -> None:
    """Put the file's tensors in, in their own precision; ties stay ties because no parameter is replaced."""
    for name, parameter in model.named_parameters():
        parameter.data = tensors[alignment.ckpt[name]].to(parameter.device)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in alignment.ckpt}
    for name, buffer in buffers.items():
        if buffer.shape == tensors[alignment.ckpt[name]].shape:
            buffer.copy_(tensors[alignment.ckpt[name]])


def _seeded_head(built: Built, policy: str) -> dict[str, Tensor]:
    if built.rebuild is None:
        raise GenboundError(f"--head {policy} has to construct the model again: give a factory instead of a module")
    torch.manual_seed(int(policy.removeprefix("seed:")))  # inside rng_untouched
    return {name: parameter.detach() for name, parameter in built.rebuild().named_parameters()}


def _head_note(new: tuple[str, ...], policy: str) -> str:
    names = ", ".join(new)
    if policy == "exclude":
        return "head left out of the layers"
    if not new:
        return ""
    if policy == "init":
        return f"head counts as zero at the start, INIT has none of its shape: {names}"
    what = "zero" if policy == "zero" else f"the draw of seed {policy.removeprefix('seed:')}"
    return f"head counts as {what} at the start: {names}"


def _notes(ckpt: StateFile, init: StateFile, alignment: Alignment) -> tuple[str, ...]:
    notes = [f"{side}: {note}" for side, file in (("CKPT", ckpt), ("INIT", init)) for note in file.notes]
    return (*notes, *(f"resized {line.removeprefix('resized').strip()}" for line in alignment.resized_lines()))


def weights_only(ckpt: StateFile, init: StateFile, policy: str, head_weights: Sequence[str] = ()) -> Pair:
    """Without an architecture: the tensors of both files, each once, whatever depends on data left out."""
    if policy.startswith("seed:"):
        raise GenboundError(f"--head {policy} has to construct the model: add --model FILE.py:factory")
    seen: dict[tuple, str] = {}
    shapes, buffers, aliases = {}, {}, {}
    for name, tensor in ckpt.tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if not tensor.is_floating_point() or name.rpartition(".")[2] in (*STATISTICS, *OPTIONAL):
            buffers[name] = tuple(tensor.shape)
        elif tensor.numel() and seen.setdefault(place, name) != name:
            aliases[name] = seen[place]  # torch.save keeps ties
        else:
            shapes[name] = tuple(tensor.shape)
    tables = tuple(
        name for name in shapes if re.search(r"(word_embeddings|embed_tokens|wte|shared|lm_head)\.weight$", name)
    )
    signature = Signature(shapes, buffers, aliases, vocabulary=tables)
    head = (
        matching(shapes, head_weights) if head_weights else named_head(shapes) or only_new_module(shapes, init.tensors)
    )
    alignment = align(signature, ckpt.tensors, init.tensors, head, policy)
    extra = [name for name in alignment.unused_init if init.tensors[name].is_floating_point()]
    extra = [name for name in extra if not named_head([name]) and name.rpartition(".")[2] not in OPTIONAL]
    if len({name.rpartition(".")[0] for name in extra}) > 1:
        shown = ", ".join(extra[:3])
        raise GenboundError(
            f"INIT is of another architecture: CKPT lacks {len(extra)} of its weights ({shown}, …); "
            "is INIT the checkpoint that CKPT was fine-tuned from? If CKPT leaves them out on purpose, "
            f"add --model FILE.py:factory, or --ignore '{extra[0].split('.')[0]}.*'"
        )
    params = {name: ckpt.tensors[name] for name in shapes}
    start = {
        name: initial_value(alignment, name, value, init.tensors)
        if name in alignment.matched
        else torch.zeros_like(value)
        for name, value in params.items()
    }
    return Pair(
        model=None,
        params=params,
        init=start,
        init_buffers={name: init.tensors[alignment.init[name]] for name in buffers if name in alignment.init},
        head=head,
        head_policy=policy,
        head_note=_head_note(alignment.new_head, policy),
        rule="a bare state dict: weights only; add --model FILE.py:factory to measure on data",
        alignment=alignment,
        tokenizer_dir=None,
        image_dir=None,
        notes=_notes(ckpt, init, alignment),
        provenance={"checkpoint": ckpt.provenance, "init": init.provenance},
    )
