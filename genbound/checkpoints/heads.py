"""Which parameters are the output head: those that fine-tuning adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.names import core, strip_prefixes
from genbound.errors import GenboundError

# "cls" and "heads" are what the masked models of transformers and the ViT of torchvision call theirs.
HEAD_NAMES = frozenset(
    "classifier head heads head_dist fc score lm_head qa_outputs pred_head output classification_head cls "
    "logits linear_head predictor".split()
)


class Scoring(NamedTuple):
    """How the scores of a sample come from the parameters, by their names, as a forward pass shows it.

    Attributes:
        last: weights with two dimensions or more whose products have no further such product behind them.
        beside: parameters of those products, or behind them: ``last``, biases, scales.
        before: weights whose products lead to those of ``last``.
    """

    last: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()


def head_names(model: nn.Module, patterns: Iterable[str] = (), scoring: Scoring | None = None) -> tuple[str, ...]:
    """Parameters of the output head.

    Those that match ``patterns``, if there are any; for a transformers model those outside the base model. Else what
    gives the scores: the child with a usual name that does, or the modules that hold the last weights. Where no pass
    says what does, a child with a usual name counts for it, or the module that holds the last weight with two
    dimensions or more in the order of registration.

    Raises:
        GenboundError: a pattern fits nothing, or the last weights of the pass are not one layer, nor layers side by
            side.
    """
    names = [name for name, _ in model.named_parameters()]
    if patterns := tuple(patterns):
        return matching(names, patterns)
    found, usual = by_name(model)
    if found is not None:
        return found
    if scoring is not None and scoring.last:
        return _giving(model, usual, scoring)
    if usual:
        return tuple(name for name in names if name.startswith(usual))
    weights = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    if not weights:
        return ()
    owner = weights[-1].rpartition(".")[0]
    return tuple(name for name in names if name.rpartition(".")[0] == owner)


def by_name(model: nn.Module) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The head of a transformers model, ``None`` for others; and of those the prefixes of children with usual names."""
    found, path, inner = huggingface.head_parameters(model), "", model
    while found is None and len(children := _with_parameters(inner)) == 1 and not inner._parameters:
        ((name, inner),) = children.items()  # a wrapper around one network
        path += f"{name}."
        found = huggingface.head_parameters(inner)
    if found is not None:
        return tuple(path + name for name in found), ()
    return None, tuple(f"{path}{child}." for child in children if child in HEAD_NAMES)


def _giving(model: nn.Module, usual: tuple[str, ...], scoring: Scoring) -> tuple[str, ...]:
    """The head by what gives the scores; a weight that is tied to another layer's belongs to the body."""
    names = [name for name, _ in model.named_parameters()]
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    tied = {name for name, parameter in model.named_parameters() if counts[id(parameter)] > 1}
    last, beside = scoring.last - tied, scoring.beside - tied
    kept = tuple(lead for lead in usual if any(name.startswith(lead) for name in beside))
    if all(name.startswith(kept) for name in last):
        return tuple(name for name in names if name.startswith(kept))
    owners = {_owner(name) for name in last}
    if len(owners) > 1 and last & scoring.before:
        shown = ", ".join(sorted(last)[:4])
        raise GenboundError(
            f"the scores come from {len(owners)} layers that lead to each other ({shown}, …): say with --head-weights "
            "which weights are the head"
        )
    return tuple(name for name in names if name in beside and _owner(name) in owners)


def _owner(name: str) -> str:
    """The module that a parameter belongs to, also where it is parametrised."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


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
