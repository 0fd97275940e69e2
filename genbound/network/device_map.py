"""Which device each module goes to: as a map says, or spread over all accelerators by their free memory.

Modules are kept whole where their own code may join results, as around a residual connection: those that transformers
says must not be split (``_no_split_modules``), and otherwise the members of ``nn.Sequential`` and ``nn.ModuleList``,
which hold the blocks of a network, and modules with no such list inside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genbound.errors import GenboundError, first_line
from genbound.network.placement import DeviceMap, Placement, check_names

AUTO = "auto"
KINDS = ("cuda", "xpu")


def read_device_map(value: str | None) -> str | DeviceMap | None:
    """What ``--device-map`` says: ``auto``, or the map in a JSON file.

    Raises:
        GenboundError: there is no such file, or no map in it.
    """
    if value is None or value == AUTO:
        return value
    try:
        content = json.loads(Path(value).read_text(), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise GenboundError(
            f"--device-map {value} cannot be read ({first_line(error)}): give auto, or a JSON file of module names and "
            "devices"
        ) from error
    fits = isinstance(content, dict) and all(type(device) in (str, int) for device in content.values())
    if not fits or not content:
        raise GenboundError(f'--device-map {value} must hold module names with devices, as {{"": "cuda:0"}}')
    return content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused where a name is in it twice: json keeps the last one without a word."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} is in it twice")
    return dict(pairs)


def place(
    model: nn.Module, device: str | torch.device, device_map: str | DeviceMap | None, order: Sequence[str] = ()
) -> Placement:
    """Where a model's weights go.

    Args:
        model: whose weights.
        device: where all of them go without a map.
        device_map: ``auto``, or name of a module -> device (:meth:`~genbound.network.placement.Placement.by`).
        order: names of modules in which a forward pass runs them; the others follow as they are defined.

    Raises:
        GenboundError: the map does not fit the model or the machine.
    """
    if device_map is None:
        return Placement.on(device)
    check_device_map(model, device_map)
    if isinstance(device_map, str):
        found = accelerators()
        if len(found) < 2:
            only = found[0] if found else torch.device("cpu")
            return Placement.on(only, f"device map auto: all layers are on {only}, for there is no second accelerator")
        return Placement.by(model, balanced(model, found, [_free(d) for d in found], order))
    return Placement.by(model, device_map)


def check_device_map(model: nn.Module, device_map: str | DeviceMap | None) -> None:
    """Refuse a map that is none, or whose names the model has not, also where nothing is put anywhere.

    Raises:
        GenboundError: it is neither ``auto`` nor a map, or names what the model has not.
    """
    if isinstance(device_map, str):
        if device_map != AUTO:
            raise GenboundError(f"device map {device_map!r} is unknown: use auto, or a mapping of modules to devices")
    elif device_map is not None:
        check_names(model, device_map)


def accelerators() -> list[torch.device]:
    """All that are visible, of the first kind that there is."""
    for kind in KINDS:
        module: Any = getattr(torch, kind, None)
        if module is not None and (count := module.device_count()):
            return [torch.device(kind, i) for i in range(count)]
    return []


def _free(device: torch.device) -> int:
    """Bytes that nobody has taken on an accelerator."""
    return int(getattr(torch, device.type).mem_get_info(device)[0])


def balanced(
    model: nn.Module, devices: Sequence[torch.device], free: Sequence[int], order: Sequence[str] = ()
) -> dict[str, torch.device]:
    """A map that gives every device, one after the other, its part of the weights.

    Args:
        model: whose weights are spread, a tied one where it is met first.
        devices: in the order of the pass.
        free: bytes on each, in whose proportion the weights are spread.
        order: as for :func:`place`.
    """
    rank = {name: i for i, name in enumerate(order)}
    units = sorted(whole_modules(model), key=lambda name: rank.get(name, len(rank)))
    modules, counted, sizes = dict(model.named_modules()), set[int](), {}
    for name in units:
        tensors = [t for t in (*modules[name].parameters(), *modules[name].buffers()) if id(t) not in counted]
        counted.update(map(id, tensors))
        sizes[name] = sum(t.numel() for t in tensors)
    ends = [sum(free[: i + 1]) / sum(free) * sum(sizes.values()) for i in range(len(devices))]
    found: dict[str, torch.device] = {}
    before = 0
    for name, size in sizes.items():
        place_of = next((i for i, end in enumerate(ends) if before + size / 2 <= end), len(devices) - 1)
        found[name] = devices[place_of]
        before += size
    return _with_tied(model, {**_own_tensors(model, found, list(sizes)), **found})


def _own_tensors(model: nn.Module, found: dict[str, torch.device], units: Sequence[str]) -> dict[str, torch.device]:
    """Weights of modules that are split themselves go where the first of what these hold goes."""
    own: dict[str, torch.device] = {}
    for name, module in model.named_modules():
        if any(name == unit or name.startswith(f"{unit}.") for unit in units):
            continue
        first = next((found[unit] for unit in units if not name or unit.startswith(f"{name}.")), None)
        for tensor, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if first is not None:
                own[f"{name}.{tensor}" if name else tensor] = first
    return own


def _with_tied(model: nn.Module, found: dict[str, torch.device]) -> dict[str, torch.device]:
    """The map, with each tied weight wherever it is met first."""
    first: dict[int, str] = {}
    extra: dict[str, torch.device] = {}
    order = list(found)

    def device_of(name: str) -> torch.device:
        return found[max((key for key in order if key in ("", name) or name.startswith(f"{key}.")), key=len)]

    for name, p in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(p), name)
        if device_of(name) != device_of(known):
            extra[name] = device_of(known)
    return {**found, **extra}


def whole_modules(model: nn.Module) -> list[str]:
    """Names of the modules that are not split, in the order of their definition; together they hold nearly all weights.

    A model with neither blocks nor parts is one of them itself, by the name ``""``.
    """
    said = set(getattr(model, "_no_split_modules", None) or ())
    return list(_walk("", model, said, False))


def _walk(name: str, module: nn.Module, said: set[str], member: bool) -> Iterator[str]:
    children = [(key, child) for key, child in module.named_children() if _has_tensors(child)]
    listed = _only_lists(module)
    inside = any(_only_lists(part) for part in module.modules() if part is not module)
    if not children or type(module).__name__ in said or (not listed and name and (member or not inside)):
        yield name
        return
    for key, child in children:
        yield from _walk(f"{name}.{key}" if name else key, child, said, listed)


def _has_tensors(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _only_lists(module: nn.Module) -> bool:
    """It holds modules and computes nothing with their results but to hand them on."""
    if isinstance(module, nn.Sequential):
        return type(module).forward is nn.Sequential.forward
    return isinstance(module, nn.ModuleList | nn.ModuleDict) and type(module).forward is nn.Module.forward
