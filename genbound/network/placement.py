"""Which device each weight is kept on, and a forward pass that goes from one device to the next.

The weights of a module are on one device, and what the module is given is moved there before it runs. Modules whose own
code joins results of several devices must be kept whole: torch refuses to mix devices, and nothing is moved behind its
back. Scores and labels meet on one device, the *home*.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genbound.errors import GenboundError, did_you_mean, first_line

DeviceMap = Mapping[str, str | int | torch.device]


def usable(device: str | torch.device) -> torch.device:
    """The device, if something can be put there.

    Raises:
        GenboundError: it does not exist, or is none that computes.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:  # it lists every name that any build knows
        raise GenboundError(f"device {str(device)!r} is none that torch knows: use cpu, or cuda:0") from error
    try:
        torch.empty(1, device=found)
    except Exception as error:  # each kind of device raises its own, some of them a list of all that this build has
        why = first_line(error) if _is_built(error) else f"torch is built without {found.type}"
        raise GenboundError(f"device {str(device)!r} cannot be used here: {why}; use cpu") from error
    if found.type == "meta":
        raise GenboundError("device 'meta' cannot be used here: it holds shapes and no numbers; use cpu")
    return torch.device("cpu") if found.type == "cpu" else found  # cpu:1 is the same memory


def _is_built(error: Exception) -> bool:
    """Whether this build of torch has the kind of device at all that something cannot be put on."""
    lacking = isinstance(error, NotImplementedError | AssertionError | ImportError)
    return not lacking and "INTERNAL ASSERT" not in str(error)


@dataclass(frozen=True)
class Placement:
    """Where the weights and buffers of a network are, and where its modules compute.

    Attributes:
        home: where scores and labels meet, and what is measured of all layers together.
        first: where inputs are put.
        tensors: name -> device of a weight or buffer; those that are not named are at home.
        modules: name -> device of the modules that are wholly on one; empty where all is at home.
        remark: how the layers are spread, for readers of the numbers; empty where nobody asked for that.
    """

    home: torch.device
    first: torch.device
    tensors: Mapping[str, torch.device]
    modules: Mapping[str, torch.device]
    remark: str = ""

    @classmethod
    def on(cls, device: str | torch.device, remark: str = "") -> Placement:
        """Everything on one device."""
        found = usable(device)
        return cls(found, found, {}, {}, remark)

    @classmethod
    def by(cls, model: nn.Module, device_map: DeviceMap, remark: str = "") -> Placement:
        """As a map says.

        Args:
            model: whose modules are spread.
            device_map: name of a module, or of a weight, -> device, for itself and all below it; the longest name that
                fits counts, ``""`` is the whole model. A number is the accelerator of that number.
            remark: for readers of the numbers.

        Raises:
            GenboundError: a name or a device does not exist, a weight has no device, or a tied weight has two.
        """
        devices = _devices(model, device_map)
        owned = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        by_tensor: dict[int, tuple[str, torch.device]] = {}
        for name, tensor in owned:
            device = _longest(name, devices)
            first_name, known = by_tensor.setdefault(id(tensor), (name, device))
            if known != device:
                raise GenboundError(
                    f"the device map puts {first_name} on {known} and {name}, which is the same weight, on {device}: "
                    "give both modules one device"
                )
        used = dict.fromkeys(by_tensor[id(tensor)][1] for _, tensor in owned)
        modules = {
            name: found.pop()
            for name, module in model.named_modules()
            if len(found := {by_tensor[id(t)][1] for t in (*module.parameters(), *module.buffers())}) == 1
        }
        order = list(used)
        tensors = {name: device for name, device in by_tensor.values()}
        if len(order) == 1:
            return cls(order[0], order[0], {}, {}, remark)
        last = by_tensor[id(owned_last(model))][1]
        return cls(last, order[0], tensors, modules, remark or _spread(model, tensors))

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All that are used."""
        return tuple(dict.fromkeys(self.tensors.values())) or (self.home,)

    def of(self, name: str) -> torch.device:
        """The device of a weight or a buffer."""
        return self.tensors.get(name, self.home)

    @contextlib.contextmanager
    def moving(self, model: nn.Module) -> Iterator[None]:
        """Within it, passes of the model move what a module is given to the module's device.

        Raises:
            GenboundError: a module joins results of several devices.
        """
        if not self.modules:
            yield
            return
        with contextlib.ExitStack() as stack:
            for name, module in model.named_modules():
                if name in self.modules:
                    handle = module.register_forward_pre_hook(_mover(self.modules[name]), with_kwargs=True)
                    stack.callback(handle.remove)
            try:
                yield
            except RuntimeError as error:
                if "same device" not in str(error):
                    raise
                raise GenboundError(
                    f"the device map splits {self._split(model, error)}, whose own code joins results of several "
                    "devices: keep it on one device in a map of your own, --device-map FILE.json"
                ) from error

    def _split(self, model: nn.Module, error: BaseException) -> str:
        """The innermost of the running modules whose weights are on several devices."""
        names = {id(module): name for name, module in model.named_modules()}
        running = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        found = [names[id(module)] for module in running if id(module) in names]
        split = [name for name in found if name not in self.modules and name]
        return f"module {split[-1]}" if split else "the model"


def owned_last(model: nn.Module) -> Tensor:
    """The weight of the last module that has one of its own: its result is what a pass ends with, as a rule."""
    own = [next(iter(module.parameters(recurse=False)), None) for module in model.modules()]
    return [p for p in own if p is not None][-1]


def _mover(device: torch.device) -> Callable[..., Any]:
    def move(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return moved(args, device), moved(kwargs, device)

    return move


def moved(value: Any, device: torch.device) -> Any:
    """The same with the tensors in it on the device, through lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (list, tuple):
        return type(value)(moved(part, device) for part in value)
    if type(value) is dict:
        return {key: moved(part, device) for key, part in value.items()}
    return value


def _devices(model: nn.Module, device_map: DeviceMap) -> dict[str, torch.device]:
    """Name -> device, of names and devices that exist."""
    check_names(model, device_map)
    kind = "xpu" if hasattr(torch, "xpu") and torch.xpu.device_count() and not torch.cuda.device_count() else "cuda"
    found = {}
    for name, device in device_map.items():
        if device == "disk":
            raise GenboundError(f"the device map puts {name or 'the model'} on disk, where nothing computes")
        found[name] = usable(f"{kind}:{device}" if isinstance(device, int) else device)
        if found[name].type != "cpu" and found[name].index is None:
            found[name] = torch.device(found[name].type, 0)
    kinds = sorted({device.type for device in found.values()})
    if len(kinds) > 1:
        raise GenboundError(
            f"the device map mixes kinds of device ({' and '.join(kinds)}), whose random numbers differ: use one kind"
        )
    return found


def check_names(model: nn.Module, device_map: DeviceMap) -> None:
    """Refuse a map with a name that is none of the model's, whose weights are not looked at.

    Raises:
        GenboundError: a name does not exist.
    """
    known = [name for name, _ in (*model.named_modules(), *model.named_parameters(remove_duplicate=False))]
    known += [name for name, _ in model.named_buffers(remove_duplicate=False)]
    for name in device_map:
        if name not in known:
            hint = did_you_mean(name, known)
            raise GenboundError(f"the device map names {name!r}, and the model has no such module{hint}")


def _longest(name: str, devices: Mapping[str, torch.device]) -> torch.device:
    """The device of the longest name that is the tensor's or that of a module around it."""
    parts = name.split(".")
    for length in range(len(parts), -1, -1):
        if (prefix := ".".join(parts[:length])) in devices:
            return devices[prefix]
    module = ".".join(parts[:-1])
    raise GenboundError(
        f"the device map has no device for {module or name}: name it, a module around it, or '' for all others"
    )


def _spread(model: nn.Module, tensors: Mapping[str, torch.device]) -> str:
    """What each device has, in words."""
    sizes: dict[torch.device, int] = {}
    for name, p in model.named_parameters():
        sizes[tensors[name]] = sizes.get(tensors[name], 0) + p.numel()
    shown = ", ".join(f"{size:,} on {device}" for device, size in sizes.items())
    return f"the weights are spread over {len(sizes)} devices: {shown}"
