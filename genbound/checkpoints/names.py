"""Names of weights: what wrappers, training classes, base models and adapters add or leave out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

# DataParallel and DDP, torch.compile, FSDP, activation checkpointing, Lightning Fabric: anywhere in a name, in any
# order.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
LEADING = "model."  # what training classes call the network inside
_ADAPTER = re.compile(r"(^|\.)lora_")


def unwrapped(name: str) -> str:
    """The name without what wrappers added, wherever they are.

    Example:
        >>> unwrapped("module._orig_mod.block.module.fc.weight")
        'block.fc.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def plain_name(name: str) -> str:
    """The name of a live network's weight in the bare network: without wrappers, and without what PEFT adds.

    Of a network itself, unlike of a file, ``module.`` is taken for a wrapper only in front: further in it is a part of
    the network that somebody called so.

    Example:
        >>> plain_name("module.base_model.model.encoder.query.base_layer.weight")
        'encoder.query.weight'
        >>> plain_name("base_model.model.classifier.modules_to_save.default.weight")
        'classifier.weight'
    """
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS - {"module"})
    while name.startswith(("module.", "base_model.model.")):
        name = name.removeprefix("module.").removeprefix("base_model.model.")
    name = re.sub(r"\.base_layer\.", ".", name)
    return re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)


def is_adapter(name: str) -> bool:
    """The parameter is a factor of an adapter, or PEFT's frozen copy of a module that is trained in full."""
    return bool(_ADAPTER.search(name)) or ".original_module." in name


def last(name: str) -> str:
    """The last part of a name: ``weight`` of ``fc.weight``."""
    return name.rpartition(".")[2]


def core(name: str, prefix: str = "") -> str:
    """The name without wrappers, ``model.`` and the base model's ``prefix`` in front of it."""
    name = unwrapped(name)
    while found := next((lead for lead in (LEADING, prefix) if lead and name.startswith(lead)), None):
        name = name.removeprefix(found)
    return name


def strip_prefixes(keys: Iterable[str], expected: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Match names that differ by the prefixes which wrappers add.

    Wrappers come nested in any order, anywhere in a name and on either side; ``model.`` and ``prefix`` only in front. A
    name that fits as it is stays as it is, unless all that do fit with one prefix, too, and more. Where that matches
    fewer than half of the names, the one prefix that most names have on either side is looked for (``student.``,
    ``backbone.``).

    Args:
        keys: names in a file.
        expected: names that are wanted.
        prefix: one more prefix to see through, such as the ``bert.`` that a base model's checkpoint lacks.

    Returns:
        Name in the file -> expected name, for those that match. What is ambiguous is not matched.

    Example:
        >>> strip_prefixes(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"], ["fc.weight"])
        {'module._orig_mod.fc.weight': 'fc.weight'}
        >>> strip_prefixes(["student.a.weight", "student.b.weight", "head.weight"], ["a.weight", "b.weight"])
        {'student.a.weight': 'a.weight', 'student.b.weight': 'b.weight'}
    """
    keys, expected = list(keys), list(expected)
    wanted = set(expected)
    mapping = _shifted(keys, expected, prefix) or {key: key for key in keys if key in wanted}
    clear = _match(keys, expected, mapping, lambda key: core(key, prefix), lambda name: core(name, prefix))
    if clear and 2 * len(mapping) < min(len(expected), len(keys)):
        rest = [key for key in keys if key not in mapping]
        missing = [name for name in expected if name not in set(mapping.values())]
        longer = common_prefix(map(unwrapped, rest), map(unwrapped, missing))
        shorter = common_prefix(map(unwrapped, missing), map(unwrapped, rest))
        if longer and not shorter:
            inside = [key for key in keys if unwrapped(key).startswith(longer)]
            _match(inside, expected, mapping, lambda key: unwrapped(key).removeprefix(longer), unwrapped)
        elif shorter and not longer:
            inside = [name for name in expected if unwrapped(name).startswith(shorter)]
            _match(keys, inside, mapping, unwrapped, lambda name: unwrapped(name).removeprefix(shorter))
    return mapping


def _shifted(keys: Iterable[str], expected: Iterable[str], prefix: str) -> dict[str, str]:
    """The names with one prefix put in front or taken off, where some would fit another layer as they are.

    A network inside a class that has an ``fc`` of its own behind the network's: ``fc`` is the one without the class,
    and ``model.fc`` with it. The prefix is believed where whatever fits as it is fits with it, too, and more does.
    """
    mine, theirs = ({unwrapped(name): name for name in names} for names in (keys, expected))
    same = mine.keys() & theirs.keys()
    if not same or len(same) == len(mine):
        return {}
    for lead in (LEADING, prefix, common_prefix(theirs, mine)):
        inside = {name for name in mine if lead and lead + name in theirs}
        if same < inside:
            return {mine[name]: theirs[lead + name] for name in inside}
    for lead in (LEADING, prefix, common_prefix(mine, theirs)):
        inside = {name for name in theirs if lead and lead + name in mine}
        if same < inside:
            return {mine[lead + name]: theirs[name] for name in inside}
    return {}


def _match(
    keys: Iterable[str],
    expected: Iterable[str],
    mapping: dict[str, str],
    of_key: Callable[[str], str],
    of_name: Callable[[str], str],
) -> bool:
    """Add the pairs whose reduced names are equal, if one key and one name have them; whether that was always so."""
    clear = True
    taken = set(mapping.values())
    free: dict[str, list[str]] = {}
    for name in expected:
        if name not in taken:
            free.setdefault(of_name(name), []).append(name)
    candidates: dict[str, list[str]] = {}
    for key in keys:
        if key not in mapping:
            candidates.setdefault(of_key(key), []).append(key)
    for name, found in candidates.items():
        if len(found) == 1 and len(free.get(name, ())) == 1:
            mapping[found[0]] = free[name][0]
        elif name in free:
            clear = False
    return clear


def common_prefix(longer: Iterable[str], shorter: Iterable[str]) -> str:
    """The prefix without which most of the longer names are among the shorter ones; empty if none or several do.

    At least half of the shorter names must be reached.
    """
    shorter = set(shorter)
    votes: Counter[str] = Counter()
    for name in longer:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in shorter:
                votes[".".join(parts[:cut]) + "."] += 1
    best = votes.most_common(2)
    if not best or 2 * best[0][1] < len(shorter) or (len(best) == 2 and best[1][1] == best[0][1]):
        return ""
    return best[0][0]


def surrounding(mapping: dict[str, str]) -> str:
    """The prefix that all matched names of a file have beyond the model's own.

    What lies outside it is no part of the network.
    """
    found = set()
    for key, name in mapping.items():
        bare, own = unwrapped(key), unwrapped(name)
        found.add(bare[: -len(own)] if bare.endswith(own) and bare != own else "")
    return found.pop() if len(found) == 1 else ""
