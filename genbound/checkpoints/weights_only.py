"""Two bare state dicts without an architecture: their weights side by side, and nothing that depends on data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from genbound.checkpoints.alignment import OPTIONAL, STATISTICS, Alignment, Signature, align, pattern_of
from genbound.checkpoints.heads import matching, named_head, only_new_module
from genbound.checkpoints.names import last, strip_prefixes
from genbound.checkpoints.pair import Pair, Sources, pair_of
from genbound.checkpoints.pair_files import PairFiles
from genbound.errors import GenboundError

RULE = "a bare state dict: weights only; add --model FILE.py:factory to measure on data"
TABLES = re.compile(r"(word_embeddings|embed_tokens|wte|shared|lm_head)\.weight$")  # one row a token


def weights_only(files: PairFiles) -> Pair:
    """The tensors of both files, each once.

    Raises:
        GenboundError: the files do not belong together, or the head is to be drawn, which needs a model.
    """
    spec, tensors, start = files.spec, files.ckpt.tensors, files.init.tensors
    if spec.head_policy.startswith("seed:"):
        raise GenboundError(f"--head {spec.head_policy} has to construct the model: add --model FILE.py:factory")
    signature = _tied_again(signature_of(tensors), tensors, start)
    shapes = signature.params
    if spec.head_weights:
        head = matching(shapes, spec.head_weights)
    else:
        head = named_head(shapes) or only_new_module(shapes, start)
    if not head and spec.head_policy != "init":
        raise GenboundError(
            f"--head {spec.head_policy}: without a model nothing says which weights are the head; name them with "
            "--head-weights"
        )
    alignment = align(signature, tensors, start, head, spec.head_policy)
    _refuse_another_architecture(alignment, start)
    if not spec.head_weights and not named_head(head):
        _refuse_renamed(alignment, shapes, start)
    return pair_of(Sources(tensors, start, RULE), files, {name: tensors[name] for name in shapes}, head, alignment)


def signature_of(tensors: Mapping[str, Tensor]) -> Signature:
    """What the file itself says of its model: which tensors are weights, which buffers, which the same one again.

    Args:
        tensors: a state dict, values of any shape.
    """
    first: dict[tuple, str] = {}
    shapes, buffers, aliases = {}, {}, {}
    for name, tensor in tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if not tensor.is_floating_point() or last(name) in (*STATISTICS, *OPTIONAL):
            buffers[name] = tuple(tensor.shape)
        elif tensor.numel() and first.setdefault(place, name) != name:
            aliases[name] = first[place]  # torch.save keeps ties
        else:
            shapes[name] = tuple(tensor.shape)
    return Signature(shapes, buffers, aliases, vocabulary=tuple(name for name in shapes if TABLES.search(name)))


def _tied_again(signature: Signature, tensors: Mapping[str, Tensor], init: Mapping[str, Tensor]) -> Signature:
    """The signature with weights tied that moved as one: copying them, or writing them as safetensors, unties them.

    Frozen copies of one layer stay layers: nothing says that they are one, and their distance is zero.
    """
    names = strip_prefixes(init, [*signature.params, *signature.aliases])
    start = {name: init[key] for key, name in names.items()}
    first: dict[tuple, list[str]] = {}
    aliases = dict(signature.aliases)
    for name in (name for name, shape in signature.params.items() if len(shape) >= 2):
        found = first.setdefault(_fingerprint(tensors[name]), [])
        twin = next((other for other in found if _moved_as_one(name, other, tensors, start)), None)
        if twin is None:
            found.append(name)
        else:
            aliases |= {name: twin} | {alias: twin for alias, other in aliases.items() if other == name}
    params = {name: shape for name, shape in signature.params.items() if name not in aliases}
    return replace(
        signature,
        params=params,
        aliases=aliases,
        vocabulary=tuple(name for name in signature.vocabulary if name in params),
    )


def _fingerprint(tensor: Tensor) -> tuple:
    """The same for equal tensors, and rarely for others: a look at a few of its numbers."""
    flat = tensor.reshape(-1)
    return tensor.shape, tensor.dtype, tuple(flat[:: max(1, len(flat) // 16)].tolist())


def _moved_as_one(name: str, other: str, tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> bool:
    """Equal at the end, and at the start, which may have one of them alone; and not equal to what they were."""
    begun = [start[known] for known in (name, other) if known in start]
    end = tensors[name]
    return (
        bool(begun)
        and torch.equal(end, tensors[other])
        and bool((end != end.flatten()[0]).any())  # of zeros or ones nobody can tell
        and all(torch.equal(begun[0], one) for one in begun)
        and not (begun[0].shape == end.shape and torch.equal(begun[0].to(end), end))
    )


def _refuse_another_architecture(alignment: Alignment, init: Mapping[str, Tensor]) -> None:
    """Without a model nothing says that CKPT is whole: INIT may have no more than one module beside it, and a head."""
    extra = [name for name in alignment.unused_init if init[name].is_floating_point()]
    extra = [name for name in extra if not named_head([name]) and last(name) not in OPTIONAL]
    if len({name.rpartition(".")[0] for name in extra}) > 1:
        kept = {*alignment.ckpt.values(), *alignment.init.values()}
        raise GenboundError(
            f"INIT is of another architecture: CKPT lacks {len(extra)} of its weights ({', '.join(extra[:3])}, …); "
            "is INIT the checkpoint that CKPT was fine-tuned from? If CKPT leaves them out on purpose, "
            f"add --model FILE.py:factory, or --ignore '{pattern_of(extra, kept)}'"
        )


def _refuse_renamed(alignment: Alignment, shapes: Mapping[str, tuple[int, ...]], init: Mapping[str, Tensor]) -> None:
    """One module that INIT lacks is a new head, unless INIT has one of its shape that CKPT lacks."""
    for name in alignment.new_head:
        other = next((key for key in alignment.unused_init if tuple(init[key].shape) == shapes[name]), None)
        if other is not None and last(other) == last(name):
            raise GenboundError(
                f"CKPT has {name} and INIT {other}, of one shape and each unknown to the other: if it is one layer, "
                f"name it alike; if it is a new head, say --head-weights '{pattern_of([name])}'"
            )
