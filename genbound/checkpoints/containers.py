"""Where the weights lie among everything that a training script saves, and which other weights lie beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from genbound.checkpoints.torch_files import Inert, module_state
from genbound.errors import GenboundError

# In the order in which they are believed. "module" is DeepSpeed's, "model" that of most scripts.
USUAL = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
    "model_weights", "backbone", "student",
)  # fmt: skip
# Tensors by name, but no weights of the network.
OTHER = (
    "optim",
    "sched",
    "scaler",
    "rng",
    "callback",
    "loops",
    "criterion",
    "loss",
    "metric",
    "hparam",
    "hyper",
    "config",
    "args",
)


@dataclass(frozen=True)
class Found:
    """A state dict inside a file.

    Attributes:
        tensors: the weights by name, of any shape.
        hyper_parameters: those of a Lightning checkpoint.
        notes: which entry was taken, and which others could have been.
    """

    tensors: dict[str, Tensor]
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_state(content: Any, file: Path, entry: str | None = None) -> Found:
    """The state dict inside the containers that training scripts save.

    Averaged weights (EMA) that lie beside the plain ones are named in the notes; where they are the only ones they are
    taken.

    Args:
        content: what the file holds.
        file: for the messages.
        entry: the entry to take, with dots for entries within entries.

    Raises:
        GenboundError: there are no weights, or several and nothing says which.
    """
    if isinstance(content, Tensor | list | tuple) or not isinstance(content, Mapping | Inert):
        raise GenboundError(f"{str(file)!r} holds a {type(content).__name__}, no state dict; save model.state_dict()")
    entries = _entries(content)
    if entry is not None and not (entry == "" or entry in entries):
        # The other file of the pair may be the one that has entries.
        if entries.keys() - {""}:
            names = ", ".join(sorted(entries.keys() - {""}))
            raise GenboundError(f"{str(file)!r} has no entry {entry!r} with weights; it has {names}")
        entry = None
    if not entries:
        what = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise GenboundError(
            f"{str(file)!r} is no state dict (it holds {what[:200] or 'nothing'}); save model.state_dict() alone"
        )
    chosen = _choose(entries, file) if entry is None else entry
    others = [name for name in entries if name not in (chosen, "") and not name.startswith(f"{chosen}.")]
    notes = [f"the weights are entry {chosen!r} of {file.name}"] if chosen else []
    if others:
        notes.append(f"{file.name} also holds weights in {', '.join(others)}: --entry {others[0]} would measure those")
    hyper = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return Found(entries[chosen], dict(hyper) if isinstance(hyper, Mapping) else {}, tuple(notes))


def _entries(content: Any, path: str = "", depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Every state dict within reach, by the path that leads to it."""
    if isinstance(content, Inert):
        state = module_state(content)
        return {} if state is None else {path: state}
    if not isinstance(content, Mapping) or depth > 3 or not all(isinstance(key, str) for key in content):
        return {}
    own = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in content.items():
        if any(word in name.lower() for word in OTHER) and "ema" not in name.lower():
            continue
        found |= _entries(value, f"{path}.{name}".lstrip("."), depth + 1)
    # A single number beside real entries is a score, and a mapping without a dot or a weight is no state dict.
    dotted, weighs = (any("." in name for name in own), any(t.ndim >= 2 for t in own.values()))
    if own and (not found or dotted or (weighs and not any(_usual(name) for name in found))):
        found = {path: own, **found}
    return found


def _usual(name: str) -> bool:
    """The entry is one that scripts put the network's weights in: a matrix beside it is something else."""
    return name.rpartition(".")[2] in USUAL and not _averaged(name)


def _choose(entries: Mapping[str, Any], file: Path) -> str:
    if "" in entries:
        return ""
    plain = [name for name in entries if not _averaged(name)]
    for usual in USUAL:
        fitting = [name for name in plain if name.split(".")[-1] == usual]
        if fitting:
            return min(fitting, key=lambda name: name.count("."))
    candidates = plain or list(entries)
    if len(candidates) > 1:
        raise GenboundError(
            f"{str(file)!r} holds several sets of weights ({', '.join(candidates)}); say which one with --entry, e.g. "
            f"--entry {candidates[0]}"
        )
    return candidates[0]


def _averaged(name: str) -> bool:
    return any(
        word in name.lower().replace("_", ".").split(".")
        for word in ("ema", "averaged", "averaging", "average", "swa", "shadow")
    )
