"""A fine-tuned network and the weights it started from, under one set of names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genbound.checkpoints.alignment import Alignment, Signature, align, initial_value
from genbound.checkpoints.heads import head_names
from genbound.checkpoints.pair_files import PairFiles
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
        image_settings: how images are prepared, in timm's words; empty where nothing says so.
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
    image_settings: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What results say of the files: the notes, and which tensors of theirs do not count."""
        return (*self.notes, *self.alignment.unused_lines())

    @property
    def excluded(self) -> tuple[str, ...]:
        """Parameters to leave out of the layers."""
        return self.head if self.head_policy == "exclude" else ()


@dataclass(frozen=True)
class Sources:
    """Both files' tensors under names that go together.

    Attributes:
        ckpt, init: the tensors of the files, of any shape.
        rule: a sentence that says which rule chose the names.
    """

    ckpt: Mapping[str, Tensor]
    init: Mapping[str, Tensor]
    rule: str


@dataclass(frozen=True)
class Built(Sources):
    """A model, with both files' tensors under names that it understands.

    Attributes:
        model: the architecture, with whatever weights.
        rebuild: constructs the model again, where that is possible.
        unused: names in CKPT and in INIT that the model's own loading has left out.
        image_settings: how images are prepared, in timm's words; empty where nothing says so.
        factors: the two factors ``[rows, rank]`` and ``[rank, columns]`` of displacements that are known as such, by
            the weight's name.
    """

    model: nn.Module
    rebuild: Callable[[], nn.Module] | None = None
    unused: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    image_settings: Mapping[str, Any] = field(default_factory=dict)


def assemble(built: Built, files: PairFiles) -> Pair:
    """Fill the model with the fine-tuned weights and put the initial ones beside them.

    Raises:
        GenboundError: the model and the files do not fit each other.
    """
    model, spec = built.model.eval(), files.spec
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise GenboundError(f"{built.rule}: the model has lazy modules without shapes; run it once in the factory")
    head = head_names(model, spec.head_weights or ())
    alignment = align(Signature.of(model), built.ckpt, built.init, head, spec.head_policy)
    _fill(model, alignment, built.ckpt)
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    fresh = _seeded_head(built, spec.head_policy) if spec.head_policy.startswith("seed:") else {}
    if any(built.unused):
        alignment = dataclasses.replace(alignment, unused_ckpt=built.unused[0], unused_init=built.unused[1])
    pair = pair_of(built, files, params, head, alignment, fresh)
    factors = {name: two for name, two in built.factors.items() if name in alignment.matched}
    return dataclasses.replace(pair, model=model, factors=factors, image_settings=built.image_settings)


def pair_of(
    sources: Sources,
    files: PairFiles,
    params: dict[str, Tensor],
    head: tuple[str, ...],
    alignment: Alignment,
    fresh: Mapping[str, Tensor] | None = None,
) -> Pair:
    """The pair of aligned weights, without a model.

    Args:
        sources: both files' tensors.
        files: both files, and what is said about them.
        params: the fine-tuned weights by name, in any shape.
        head: names of the head's parameters.
        alignment: which tensor of INIT belongs to which weight.
        fresh: initial values of weights that INIT does not give, in the shapes of ``params``; zero without.
    """
    policy, start = files.spec.head_policy, sources.init
    return Pair(
        model=None,
        params=params,
        init={name: _initial(name, value, start, alignment, fresh or {}) for name, value in params.items()},
        init_buffers={name: start[key] for name, key in alignment.init.items() if name not in params},
        head=head,
        head_policy=policy,
        head_note=_head_note(alignment.new_head, policy),
        rule=sources.rule,
        alignment=alignment,
        tokenizer_dir=files.tokenizer_dir,
        image_dir=files.image_dir,
        provenance=files.provenance,
        notes=(*files.notes, *(f"resized {line}" for line in alignment.resized_lines())),
    )


def _initial(
    name: str, value: Tensor, init: Mapping[str, Tensor], alignment: Alignment, fresh: Mapping[str, Tensor]
) -> Tensor:
    """What a weight was at the start, in its present precision."""
    if name in alignment.matched:
        return initial_value(alignment, name, value, init)
    return fresh[name].to(value) if name in fresh else torch.zeros_like(value)


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
    named = built.rebuild().named_parameters(remove_duplicate=False)  # merging an adapter may have untied some
    return {name: parameter.detach() for name, parameter in named}


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
