"""Which parameters are the output head: those that fine-tuning adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.names import core, strip_prefixes
from genbound.errors import GenboundError

# "cls" and "heads" are what the masked models of transformers and the ViT of torchvision call theirs.
HEAD_NAMES = frozenset(
    "classifier head heads head_dist fc score lm_head qa_outputs pred_head output classification_head cls "
    "logits linear_head predictor".split()
)


def head_names(model: nn.Module, patterns: Iterable[str] = ()) -> tuple[str, ...]:
    """Parameters of the output head.

    Those that match ``patterns``, if there are any; for a transformers model those outside the base model; else those
    of a child with a usual name; else those of the module that holds the last weight with two dimensions or more.
    """
    names = [name for name, _ in model.named_parameters()]
    if patterns := tuple(patterns):
        return matching(names, patterns)
    found = huggingface.head_parameters(model)
    if found is not None:
        return found
    path, inner = "", model
    while len(children := _with_parameters(inner)) == 1 and not inner._parameters:
        ((name, inner),) = children.items()  # a wrapper around one network
        path += f"{name}."
        if (found := huggingface.head_parameters(inner)) is not None:
            return tuple(path + name for name in found)
    usual = [child for child in children if child in HEAD_NAMES]
    if usual:
        return tuple(name for name in names if name.startswith(tuple(f"{path}{child}." for child in usual)))
    weights = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    if not weights:
        return ()
    owner = weights[-1].rpartition(".")[0]
    return tuple(name for name in names if name.rpartition(".")[0] == owner)


def matching(names: Iterable[str], patterns: Iterable[str]) -> tuple[str, ...]:
    """The names that fit one of the patterns; a pattern that fits none is refused."""
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise GenboundError(
                f"--head-weights {pattern!r} matches no weight; the last weights are {', '.join(names[-4:])}"
            )
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _with_parameters(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}


def named_head(names: Iterable[str]) -> tuple[str, ...]:
    """Names whose first part, wrappers aside, is that of a head."""
    return tuple(name for name in names if core(name).split(".")[0] in HEAD_NAMES)


def only_new_module(shapes: Mapping[str, tuple[int, ...]], init: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The one module that INIT does not have, or has in another shape: in a file the order tells nothing."""
    known = {name: key for key, name in strip_prefixes(init, shapes).items()}
    new = [name for name, shape in shapes.items() if name not in known or tuple(init[known[name]].shape) != shape]
    owners = {name.rpartition(".")[0] for name in new}
    if len(owners) != 1 or len(new) == len(shapes):
        return ()
    owner = owners.pop()
    return tuple(name for name in shapes if name.rpartition(".")[0] == owner)
