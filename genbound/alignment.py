"""Names to names: which tensor of a checkpoint belongs to which weight of a model, and what may be absent."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genbound.errors import GenboundError

WRAPPERS = ("module.", "_orig_mod.", "model.")
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
    """

    params: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""

    @classmethod
    def of(cls, model: nn.Module) -> "Signature":
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
        )


@dataclass(frozen=True)
class Alignment:
    """Which tensor of each file belongs to which weight of the model.

    Attributes:
        matched: weights that both files have, in the model's order.
        new_head: weights of the head whose initial value INIT does not give: absent, of another shape, or set
            aside by the policy.
        unused_ckpt, unused_init: names in the files that the model does not use.
        ckpt, init: name in the model -> name in the file, parameters and buffers.
    """

    matched: tuple[str, ...]
    new_head: tuple[str, ...]
    unused_ckpt: tuple[str, ...]
    unused_init: tuple[str, ...]
    ckpt: Mapping[str, str]
    init: Mapping[str, str]

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
        return lines


def strip_prefixes(keys: Iterable[str], expected: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Match names that differ by the prefixes which wrappers add.

    ``module.`` (DistributedDataParallel), ``_orig_mod.`` (torch.compile) and ``model.`` (a training class)
    come nested in any order, and on either side. A name that fits as it is stays as it is.

    Args:
        keys: names in a file.
        expected: names that are wanted.
        prefix: one more prefix to see through, such as the ``bert.`` that a base model's checkpoint lacks.

    Returns:
        Name in the file -> expected name, for those that match. What is ambiguous is not matched.

    Example:
        >>> strip_prefixes(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"], ["fc.weight"])
        {'module._orig_mod.fc.weight': 'fc.weight'}
    """
    keys, expected = list(keys), list(expected)
    mapping = {key: key for key in keys if key in set(expected)}
    wrappers = (*WRAPPERS, prefix) if prefix else WRAPPERS

    def core(name: str) -> str:
        name = name.replace("_orig_mod.", "")  # compiling a submodule puts it in the middle
        while found := next((wrapper for wrapper in wrappers if name.startswith(wrapper)), None):
            name = name.removeprefix(found)
        return name

    free: dict[str, list[str]] = {}
    for name in expected:
        if name not in mapping:
            free.setdefault(core(name), []).append(name)
    candidates: dict[str, list[str]] = {}
    for key in keys:
        if key not in mapping:
            candidates.setdefault(core(key), []).append(key)
    for name, found in candidates.items():
        if len(found) == 1 and len(free.get(name, ())) == 1:
            mapping[found[0]] = free[name][0]
    return mapping


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
    from_ckpt, from_init = _lookup(signature, ckpt, "CKPT"), _lookup(signature, init, "INIT")
    _require(signature, from_ckpt, ckpt, "CKPT", ())
    _require(signature, from_init, init, "INIT", head)
    unused_ckpt = _unused(from_ckpt, ckpt, signature)
    dropped = [name for name in unused_ckpt if ckpt[name].is_floating_point() and _last(name) not in OPTIONAL]
    if dropped:
        raise GenboundError(
            f"CKPT has {_some(dropped)} that the model does not have; choose "
            "the architecture that CKPT was saved from with --model"
        )
    given = {name for name in from_init if name in signature.params}
    given -= {name for name in given if tuple(init[from_init[name]].shape) != tuple(signature.params[name])}
    if not given:
        raise GenboundError(f"INIT and CKPT have no weight in common; {MEND}")
    aside = head if head_policy == "zero" or head_policy.startswith("seed:") else set()
    return Alignment(
        matched=tuple(name for name in signature.params if name in given and name not in aside),
        new_head=tuple(name for name in signature.params if name not in given or name in aside),
        unused_ckpt=tuple(unused_ckpt),
        unused_init=tuple(_unused(from_init, init, signature)),
        ckpt=from_ckpt,
        init=from_init,
    )


def _lookup(signature: Signature, tensors: Mapping[str, Tensor], side: str) -> dict[str, str]:
    """Name in the model -> name in the file; a tied weight may go by any of its names."""
    expected = [*signature.params, *signature.aliases, *signature.buffers]
    lookup: dict[str, str] = {}
    for key, name in strip_prefixes(tensors, expected, signature.prefix).items():
        name = signature.aliases.get(name, name)
        if name in lookup and not torch.equal(tensors[lookup[name]], tensors[key]):
            raise GenboundError(
                f"{side}: the model ties {lookup[name]!r} and {key!r}, but their values in the file differ; "
                "choose an architecture that does not tie them"
            )
        lookup.setdefault(name, key)
    return lookup


def _require(signature, lookup, tensors, side: str, optional: Iterable[str]) -> None:
    wanted = {name: shape for name, shape in signature.params.items() if name not in optional}
    wanted |= {name: shape for name, shape in signature.buffers.items() if _last(name) in STATISTICS}
    missing = [name for name in wanted if name not in lookup]
    other = [
        f"{name} {tuple(tensors[lookup[name]].shape)} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if name in lookup and tuple(tensors[lookup[name]].shape) != tuple(shape)
    ]
    mend = MEND if side == "INIT" else "choose the architecture that CKPT was saved from with --model"
    if missing and len(missing) >= len(other):
        raise GenboundError(f"{side} is of another architecture: it lacks {_some(missing)}; {mend}")
    if other:
        raise GenboundError(f"{side} is of another architecture: {_some(other, 'shape')} differ; {mend}")


def _unused(lookup: Mapping[str, str], tensors: Mapping[str, Tensor], signature: Signature) -> list[str]:
    known = strip_prefixes(tensors, [*signature.params, *signature.aliases, *signature.buffers], signature.prefix)
    return [key for key in tensors if key not in known]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _some(names: list[str], what: str = "weight") -> str:
    """``3 weights (a, b, c)``, the first few of them."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"
