"""Accelerators that are not there: tensors of the processor, and a note of the device that each is said to be on.

:class:`PretendedDevices` keeps a table from the memory of tensors to devices ``cuda:0``, ``cuda:1``, ... Operations run
on the processor. Their results are on the device of their operands, and operands on two devices are refused as CUDA
refuses them: numbers without axes and indices may come from the processor, ``to`` and ``copy_`` move. Gradients of what
was moved are moved back. Tensors stay ordinary ones: forward mode, functorch, hooks and the modes of others see what
they always see.

What is made in Python without ``device=`` is on the processor. What torch makes for itself (zeros in a derivative, the
mask of an attention) takes the device of what it first meets, for it is not known which one torch would have chosen.
What two real devices round differently is equal here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from genbound.network.forward_mode import load_rules

CPU, MOVED_TO_CPU = torch.device("cpu"), torch.device("cpu", 0)
FACTORIES = (
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn",
    "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
_device_of = torch._C.TensorBase.device.__get__
_to, _numpy, _array = Tensor.to, Tensor.numpy, Tensor.__array__
_to_copy = torch.ops.aten._to_copy.default
_run_to_copy = _to_copy._op


class _Table:
    """Which memory is said to be on which device: ``None`` is not decided, what is not there is on the processor."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[StorageWeakRef, torch.device | None]] = {}
        self._most = 10_000

    def of(self, tensor: Tensor) -> torch.device | None:
        storage = _storage(tensor)
        found = None if storage is None else self._entries.get(storage._cdata)
        return CPU if found is None else found[1]

    def put(self, tensor: Tensor, device: torch.device | None, but: Collection[int] = ()) -> None:
        """Note where a tensor is, unless its memory is one of these."""
        storage = _storage(tensor)
        if storage is None or storage._cdata in but:
            return
        if len(self._entries) > self._most:
            self._entries = {key: entry for key, entry in self._entries.items() if not entry[0].expired()}
            self._most = 10_000 + 2 * len(self._entries)
        self._entries[storage._cdata] = StorageWeakRef(storage), device


def _storage(tensor: Tensor) -> Any:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    try:
        return None if tensor.layout != torch.strided else tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # zeros without memory
        return None


class _Operations(TorchDispatchMode):
    """Gives every result its device, and refuses operands on two."""

    def __init__(self, pretended: PretendedDevices):
        super().__init__()
        self._pretended, self._table = pretended, pretended.table

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # a wrapper that costs as much as an operation
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            wanted = kwargs.get("device")
            if wanted is not None and wanted.type == "meta":  # shapes alone
                return func(*args, **kwargs)
            given = [*_tensors(args), *_tensors(kwargs.values())] if kwargs else list(_tensors(args))
            device = self._place(func, args, given, wanted)
            out = func(*args, **({**kwargs, "device": CPU} if wanted is not None else kwargs))
            if results := [out] if isinstance(out, Tensor) else list(_tensors(out)) if _is_list(out) else []:
                known = {storage._cdata for t in given if (storage := _storage(t)) is not None}
                for result in results:
                    self._table.put(result, device, known)
        return out

    def _place(self, func: Any, args: Sequence, given: Sequence[Tensor], wanted: torch.device | None) -> Any:
        """Where the results are; ``None`` where that is not decided."""
        name = func.overloadpacket.__name__
        moves = wanted is not None and wanted != CPU  # torch itself names the processor where the tensor is
        if wanted is not None:
            wanted = self._pretended.checked(wanted)
        if name == "_to_copy":
            return wanted if moves else self._table.of(args[0])
        if name == "copy_":
            return self._table.of(args[0])
        if not given:
            by_torch = wanted in (None, CPU) and not self._pretended.python_makes
            return None if by_torch else wanted or CPU
        if name in INDEXED:  # by indices on the processor, too
            given = [given[0], *(t for t in given[1:] if self._table.of(t) != CPU)]
        device = self._common(name, given)
        return wanted if moves else device

    def _common(self, name: str, tensors: Sequence[Tensor]) -> torch.device | None:
        places = [(t, self._table.of(t)) for t in tensors]
        found = {d for t, d in places if d is not None and not (d == CPU and t.dim() == 0)}
        if len(found) > 1:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{' and '.join(sorted(map(str, found)))}! (when checking arguments for {name})"
            )
        if not found:
            return None if any(d is None for _, d in places) else CPU
        (device,) = found
        for tensor, place in places:
            if place is None:
                self._table.put(tensor, device)
        return device


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif _is_list(value):
            yield from (part for part in value if isinstance(part, Tensor))


class PretendedDevices:
    """As many accelerators as wanted, as long as the context lasts.

    Args:
        num: of them.
        free: bytes that are free on each, half of what it has.
    """

    def __init__(self, num: int = 2, free: Sequence[int] | None = None):
        self.num, self.free = num, list(free or [2**34] * num)
        self.table, self.python_makes = _Table(), False

    def checked(self, device: Any) -> torch.device:
        """The device with its number.

        Raises:
            RuntimeError: it does not exist.
        """
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if found.type == "cpu":
            return CPU
        if found.type != "cuda" or (found.index or 0) >= self.num:
            raise RuntimeError(f"CUDA error: invalid device ordinal {found}")
        return torch.device("cuda", found.index or 0)

    def device(self, tensor: Tensor) -> torch.device:
        """Where a tensor is said to be."""
        with torch._C.DisableTorchFunction():
            own = _device_of(tensor)
            return own if own.type != "cpu" else self.table.of(tensor) or CPU

    def to(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        """``tensor.to(...)``."""
        if self.device(tensor).type == "meta":
            return _to(tensor, *args, copy=copy, **kwargs)
        if args and isinstance(args[0], Tensor):
            device, dtype = self.device(args[0]), args[0].dtype
        elif kwargs.get("other") is not None:
            device, dtype = self.device(kwargs["other"]), kwargs["other"].dtype
        else:
            copy = copy or (len(args) > 3 and bool(args[3]))
            device, dtype, *_ = torch._C._nn._parse_to(*args[:3], **kwargs)
        if device is not None and device.type == "meta":
            return _to(tensor, device, dtype=dtype)
        device, dtype = self.device(tensor) if device is None else self.checked(device), dtype or tensor.dtype
        if device == self.device(tensor) and dtype == tensor.dtype and not copy:
            return tensor
        return _to_copy(tensor, dtype=dtype, device=MOVED_TO_CPU if device == CPU else device)

    def _copied(self, tensor: Tensor, **kwargs: Any) -> Tensor:
        """``aten::_to_copy``, whose gradient goes back to where the tensor is."""
        out = _run_to_copy(tensor, **kwargs)
        source, node = self.device(tensor), out.grad_fn
        if node is not None and self.device(out) != source:
            node.register_hook(lambda ins, _: tuple(g if g is None else g.to(source) for g in ins))
        return out

    def _on_host(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.device(tensor) != CPU:
                raise TypeError(f"can't convert {self.device(tensor)} device type tensor to numpy")
            return function(tensor, *args, **kwargs)

        return checked

    def _factory(self, name: str) -> Callable[..., Any]:
        function = getattr(torch, name)

        def make(*args: Any, **kwargs: Any) -> Any:
            generator, device = kwargs.get("generator"), kwargs.get("device")
            if generator is not None and device is not None and torch.device(device).type != generator.device.type:
                raise RuntimeError(f"Expected a '{torch.device(device).type}' device type for generator")
            before, self.python_makes = self.python_makes, True
            try:
                if device is None or name not in ("tensor", "as_tensor"):
                    return function(*args, **kwargs)
                found = function(*args, **{key: value for key, value in kwargs.items() if key != "device"})
                return self.to(found, device)
            finally:
                self.python_makes = before

        return make

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        def properties(device: Any) -> SimpleNamespace:
            return SimpleNamespace(total_memory=2 * self.free[self.checked(device).index])

        own = {
            (Tensor, "device"): property(self.device),
            (Tensor, "is_cuda"): property(lambda t: self.device(t).type == "cuda"),
            (Tensor, "is_cpu"): property(lambda t: self.device(t).type == "cpu"),
            (Tensor, "to"): lambda t, *args, **kwargs: self.to(t, *args, **kwargs),
            (Tensor, "cpu"): lambda t: self.to(t, "cpu"),
            (Tensor, "cuda"): lambda t, device=0: self.to(t, self.checked(device)),
            (Tensor, "numpy"): self._on_host(_numpy),
            (Tensor, "__array__"): self._on_host(_array),
            (_to_copy, "_op"): self._copied,
            (torch.cuda, "_lazy_init"): lambda: None,
            (torch.cuda, "device_count"): lambda: self.num,
            (torch.cuda, "get_device_name"): lambda *_: "pretended",
            (torch.cuda, "get_device_properties"): properties,
            (torch.cuda, "mem_get_info"): lambda d: (self.free[self.checked(d).index], None),
            **{(torch, name): self._factory(name) for name in FACTORIES},
        }
        with contextlib.ExitStack() as stack:
            for (owner, name), value in own.items():
                stack.enter_context(mock.patch.object(owner, name, value))
            yield

    def __enter__(self) -> PretendedDevices:
        load_rules()  # torch compiles them from the functions that are replaced here
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(self._patched())
        self._stack.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
