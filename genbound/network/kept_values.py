"""What modules keep from one pass to the next beside parameters and buffers.

Some networks compute a value of their weights once and keep it in evaluation mode (the attention biases of LeViT), or
change their own make-up at a sample that asks for it (BigBird's attention at a short text). At other weights, or for
another sample, what was kept is wrong, and no error tells. So a pass leaves every module as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from operator import is_
from typing import Any

from torch import Tensor, nn

# What torch keeps in a module for itself; weights are put in and taken out by torch.func.functional_call.
OWN = frozenset(vars(nn.Module())) - {"_modules"}
CONTAINERS = (dict, list, set)
_HELD: set[int] = set()  # the models that a block around this one puts back


@contextlib.contextmanager
def as_they_were(model: nn.Module) -> Iterator[None]:
    """Put back what passes change in the modules: attributes, what plain containers in them hold, and children.

    Several passes inside one such block meet what those before them have kept: the outermost puts it back.

    Cost: a look at each attribute of each module, before and after.
    """
    if id(model) in _HELD:
        yield
        return
    _HELD.add(id(model))
    before = [(module, *_contents(module)) for module in model.modules()]
    try:
        yield
    finally:
        _HELD.discard(id(model))
        for module, attributes, containers in before:
            now = vars(module)
            if not _same(now, attributes):
                now.clear()
                now.update(attributes)
            for container, held in containers:
                if not _same(container, held):
                    _refill(container, held)


@contextlib.contextmanager
def without(module: nn.Module, names: Iterable[str], attributes: bool) -> Iterator[None]:
    """Let the module lack these ``attributes``, or else their values: ``None`` for each, and containers empty."""
    with as_they_were(module):
        for name in names:
            value = vars(module)[name]
            if attributes:
                del vars(module)[name]
            elif isinstance(value, CONTAINERS):
                value.clear()
            else:
                vars(module)[name] = None
        yield


def kept_tensors(module: nn.Module) -> list[str]:
    """Names of the module's attributes that are or hold tensors other than its parameters and buffers."""
    known = {id(tensor) for tensor in (*module.parameters(False), *module.buffers(False))}
    return [
        name
        for name, value in vars(module).items()
        if name not in OWN and any(isinstance(x, Tensor) and id(x) not in known for x in _entries(value))
    ]


def _contents(module: nn.Module) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """The module's attributes; and containers among those that are not torch's own, each with a copy."""
    attributes = vars(module).copy()
    held = [value for name, value in attributes.items() if name not in OWN and isinstance(value, CONTAINERS)]
    return attributes, [(value, value.copy()) for value in held]


def _entries(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, CONTAINERS) else [value]


def _same(now: Any, held: Any) -> bool:
    """Whether a container holds the same objects in the same order; tensors have no plain equality."""
    same = len(now) == len(held) and all(map(is_, _entries(now), _entries(held)))
    return same and all(map(is_, now, held))


def _refill(container: Any, held: Any) -> None:
    container.clear()
    container.extend(held) if isinstance(container, list) else container.update(held)
