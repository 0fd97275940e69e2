"""Names to names: which tensor of a checkpoint belongs to which weight of a model, and what may be absent."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from genbound.checkpoints.names import last, strip_prefixes, surrounding, unwrapped
from genbound.errors import GenboundError

# Buffers that code recomputes or that only training reads: older files have them, newer ones do not.
STATISTICS = ("running_mean", "running_var")
OPTIONAL = ("position_ids", "token_type_ids", "num_batches_tracked", "inv_freq")
MEND = "is INIT the checkpoint that CKPT was fine-tuned from, and are the two given in this order?"


@dataclass(frozen=True)
class Signature:
    """What a model expects of a checkpoint: names and shapes, without the model.

    Attributes:
        params: shapes of ``named_parameters()``.
        buffers: shapes of the persistent buffers.
        aliases: further names of tied parameters, each with the one that ``named_parameters()`` uses.
        prefix: where a transformers model keeps its base model (``bert.``); base checkpoints lack it.
        vocabulary: weights with one row a token, which grow when tokens are added.
    """

    params: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    vocabulary: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Signature:
        """The signature of a live model."""
        named = dict(model.named_parameters())
        first = {id(parameter): name for name, parameter in named.items()}
        state = model.state_dict(keep_vars=True)
        aliases = {name: first[id(value)] for name, value in state.items() if id(value) in first and name not in named}
        buffers = {name: tuple(value.shape) for name, value in state.items() if name not in named | aliases}
        prefix = getattr(model, "base_model_prefix", "")
        return cls(
            {name: tuple(parameter.shape) for name, parameter in named.items()},
            buffers,
            aliases,
            f"{prefix}." if isinstance(prefix, str) and prefix and hasattr(model, prefix) else "",
            _vocabulary(model),
        )


def _vocabulary(model: Any) -> tuple[str, ...]:
    """Token embeddings, and the output layer of a language model with its bias; other models have only the former."""
    if hasattr(model, "get_input_embeddings"):
        try:
            modules = [model.get_input_embeddings(), model.get_output_embeddings()]
        except (AttributeError, NotImplementedError):
            modules = []
    else:
        modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    owned = {id(p) for module in modules if isinstance(module, nn.Module) for p in module.parameters()}
    return tuple(name for name, p in model.named_parameters() if id(p) in owned)


@dataclass(frozen=True)
class Alignment:
    """Which tensor of each file belongs to which weight of the model.

    Attributes:
        matched: weights that both files have, in the model's order.
        new_head: weights of the head whose initial value INIT does not give: absent, of another shape, or set
            aside by the policy.
        unused_ckpt, unused_init: names in the files that the model does not use.
        ckpt, init: name in the model -> name in the file, parameters and buffers.
        resized: embeddings whose number of rows changed -> rows in INIT and in CKPT.
    """

    matched: tuple[str, ...]
    new_head: tuple[str, ...]
    unused_ckpt: tuple[str, ...]
    unused_init: tuple[str, ...]
    ckpt: Mapping[str, str]
    init: Mapping[str, str]
    resized: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The alignment as a report, one line a kind of name."""
        lines = [f"aligned        {len(self.matched)} weights are in both files"]
        for title, names in (
            ("new head", self.new_head),
            ("unused, CKPT", self.unused_ckpt),
            ("unused, INIT", self.unused_init),
        ):
            if names:
                shown = ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")
                lines.append(f"{title:<14} {shown}")
        return lines + [f"{'resized':<14} {line}" for line in self.resized_lines()]

    def unused_lines(self) -> list[str]:
        """One short line for each file that has tensors which the model does not use."""
        sides = (("CKPT", self.unused_ckpt), ("INIT", self.unused_init))
        return [f"{side} has {_some(names, 'tensor')} that the model does not use" for side, names in sides if names]

    def resized_lines(self) -> list[str]:
        """One line for each resized table: its rows on both sides, and what becomes of the difference."""
        lines = []
        for name, (before, after) in self.resized.items():
            rows = (
                f"the {after - before} new rows count from zero"
                if after > before
                else "the rows that are gone are left out"
            )
            lines.append(f"{name}: {before} rows in INIT, {after} in CKPT; {rows}")
        return lines


def align(
    signature: Signature,
    ckpt: Mapping[str, Tensor],
    init: Mapping[str, Tensor],
    head: Iterable[str] = (),
    head_policy: str = "init",
) -> Alignment:
    """Match both files to the model's names and refuse what does not belong together.

    Args:
        signature: the model's names and shapes.
        ckpt: the fine-tuned tensors; must have every weight.
        init: the pretrained tensors; may lack the head, or have it in another shape.
        head: names of the head's parameters.
        head_policy: ``init``, ``zero``, ``exclude`` or ``seed:N``.

    Raises:
        GenboundError: a weight is missing on one side or has another shape, and the mend.
    """
    head = set(head)
    tuned, start = _read(signature, ckpt, "CKPT"), _read(signature, init, "INIT")
    _require(signature, tuned)
    resized = _resized(signature, tuned, start)
    _require(signature, start, head | set(resized), head)
    _refuse_left_over(tuned)
    given = {name for name in start.keys if start.shape(name) == signature.params.get(name)} | set(resized)
    if not given:
        raise GenboundError(f"INIT and CKPT have no weight in common; {MEND}")
    aside = head if head_policy == "zero" or head_policy.startswith("seed:") else set()
    return Alignment(
        matched=tuple(name for name in signature.params if name in given and name not in aside),
        new_head=tuple(name for name in signature.params if name not in given or name in aside),
        unused_ckpt=tuned.unused,
        unused_init=start.unused,
        ckpt=tuned.keys,
        init=start.keys,
        resized={name: rows for name, rows in resized.items() if name not in aside},
    )


def initial_value(alignment: Alignment, name: str, value: Tensor, init: Mapping[str, Tensor]) -> Tensor:
    """INIT's tensor for a matched weight; of a resized embedding the rows that it has, and zeros for the new ones.

    Args:
        alignment: of the two files.
        name: of the weight.
        value: the fine-tuned weight, of any shape.
        init: INIT's tensors by their names in the file.

    Returns:
        A tensor in the shape of ``value`` and in INIT's precision.
    """
    start = init[alignment.init[name]]
    if name not in alignment.resized:
        return start
    rows = torch.zeros_like(value, dtype=start.dtype)
    common = min(len(rows), len(start))
    rows[:common] = start[:common]
    return rows


@dataclass(frozen=True)
class _Side:
    """One of the two files under the model's names.

    Attributes:
        label: ``CKPT`` or ``INIT``.
        tensors: by the names in the file.
        keys: name in the model -> name in the file.
        unused: names in the file that the model does not use.
    """

    label: str
    tensors: Mapping[str, Tensor]
    keys: Mapping[str, str]
    unused: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.keys

    def tensor(self, name: str) -> Tensor:
        return self.tensors[self.keys[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensor(name).shape)


def _read(signature: Signature, tensors: Mapping[str, Tensor], label: str) -> _Side:
    """Look every name of the model up in a file; a tied weight may go by any of its names."""
    expected = [*signature.params, *signature.aliases, *signature.buffers]
    mapping = strip_prefixes(tensors, expected, signature.prefix)
    keys: dict[str, str] = {}
    for key, name in mapping.items():
        name = signature.aliases.get(name, name)
        if name in keys and not torch.equal(tensors[keys[name]], tensors[key]):
            raise GenboundError(
                f"{label}: the model ties {keys[name]!r} and {key!r}, but their values in the file differ; "
                "choose an architecture that does not tie them"
            )
        keys.setdefault(name, key)
    return _Side(label, tensors, keys, tuple(key for key in tensors if key not in mapping))


def _refuse_left_over(tuned: _Side) -> None:
    """Refuse weights of CKPT that the model has no place for.

    Beside the network a training class keeps its criterion or its teacher; those are reported and no cause for alarm.
    """
    inside = surrounding({key: name for name, key in tuned.keys.items()})
    left = [name for name in tuned.unused if tuned.tensors[name].is_floating_point() and last(name) not in OPTIONAL]
    left = [name for name in left if unwrapped(name).startswith(inside)]
    if left:
        used = [name for name in tuned.tensors if name not in left]
        raise GenboundError(
            f"CKPT has {_some(left)} that the model does not have; choose the architecture that CKPT "
            f"was saved from with --model, or leave them out with --ignore '{pattern_of(left, used)}'"
        )


def _resized(signature: Signature, tuned: _Side, start: _Side) -> dict[str, tuple[int, int]]:
    """Token embeddings with more or fewer rows than INIT's, if the rows in common are the same tokens.

    Tokens are added at the end, so the common rows stay where they are and move little: those of another vocabulary
    are unrelated, at a distance of about sqrt(2) of their length.
    """
    found = {}
    for name in signature.vocabulary:
        if name not in start or name not in tuned:
            continue
        a, b = start.tensor(name), tuned.tensor(name)
        if a.shape == b.shape or a.shape[1:] != b.shape[1:] or tuned.shape(name) != signature.params[name]:
            continue
        if a.ndim >= 2 and _relative_move(a, b) > 0.7:
            raise GenboundError(
                f"{name} has {len(a)} rows in INIT and {len(b)} in CKPT, and the common rows are unrelated: "
                f"the vocabularies differ; {MEND}"
            )
        found[name] = (len(a), len(b))
    return found


def _relative_move(start: Tensor, end: Tensor) -> float:
    """The distance that a row has moved, in its own length: the median over the rows in common."""
    common = min(len(start), len(end))
    a, b = start[:common].double().flatten(1), end[:common].double().flatten(1)
    return float(((b - a).norm(dim=1) / a.norm(dim=1).clamp(min=1e-12)).median())


def pattern_of(names: Sequence[str], others: Iterable[str] = ()) -> str:
    """A pattern that fits the names and none of the others: of their module, of their ends, or the names themselves."""
    others = list(others)
    paths = [name.split(".")[:-1] for name in names]
    ends = [name.split(".")[::-1] for name in names]
    for pattern in (".".join([*_shared(paths), "*"]), ".".join([*_shared(ends), "*"][::-1])):
        if pattern != "*" and not any(fnmatchcase(other, pattern) for other in others):
            return pattern
    return ",".join(names[:5])


def _shared(paths: Sequence[Sequence[str]]) -> list[str]:
    """What all paths begin with."""
    return [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]


def _require(signature: Signature, side: _Side, optional: Iterable[str] = (), head: Iterable[str] = ()) -> None:
    """Refuse a file that lacks weights or running statistics of the model, or has them in another shape."""
    wanted = {name: shape for name, shape in signature.params.items() if name not in optional}
    wanted |= {name: shape for name, shape in signature.buffers.items() if last(name) in STATISTICS}
    if side.label == "CKPT":  # what it has goes into the network
        kept = {name: shape for name, shape in signature.buffers.items() if last(name) not in OPTIONAL}
        wanted |= {name: shape for name, shape in kept.items() if name in side}
    missing = [name for name in wanted if name not in side]
    other = [
        f"{name} {side.shape(name)} instead of {shape}"
        for name, shape in wanted.items()
        if name in side and side.shape(name) != shape
    ]
    if not missing and not other:
        return
    if missing and not other and all(last(name) in STATISTICS for name in missing):
        raise GenboundError(
            f"{side.label} has no running statistics of batch norm ({_some(missing, 'buffer')}); "
            "save model.state_dict(), which has them"
        )
    if side.label == "CKPT":
        mend = "choose the architecture that CKPT was saved from with --model"
    else:
        new_head = [name for name in signature.params if name in set(head)]
        mend = MEND + (_added(missing, new_head, wanted) if missing and 4 * len(missing) < len(wanted) else "")
    what = f"it lacks {_some(missing)}" if len(missing) >= len(other) else f"{_some(other, 'shape')} differ"
    raise GenboundError(f"{side.label} is of another architecture: {what}; {mend}")


def _added(missing: list[str], head: list[str], wanted: Iterable[str]) -> str:
    """The advice for few missing weights: fine-tuning may have added them."""
    others = [name for name in wanted if name not in {*missing, *head}]
    patterns = ",".join(pattern_of(names, others) for names in (missing, head) if names)
    return f" If fine-tuning added them, say so with --head-weights '{patterns}'"


def _some(names: Sequence[str], what: str = "weight") -> str:
    """``3 weights (a, b, c)``, the first few of them."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"
