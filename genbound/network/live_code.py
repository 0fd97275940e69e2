"""A digest of what code does: of the functions and values that run, not of the files that they were read from.

A file may be edited while its old functions still run, a function may be replaced where it lies, and what is written in
a notebook has no file. So the objects themselves are followed: bytecode, defaults, closures, and whatever global names
the bytecode mentions, wherever they lead. Code of libraries that are known counts by its name and the library's
version; of such a function its own bytecode and the names of what it calls count as well, so that one that was
replaced is seen. Comments, names of local variables and places on the disk do not count.
"""

from __future__ import annotations

import argparse
import collections
import decimal
import dis
import enum
import fractions
import functools
import hashlib
import pathlib
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genbound.data.sample_parts import raw_bytes

# Libraries that count by their versions. Genbound's own sources are counted by whoever asks for a digest.
KNOWN = (
    "torch", "torchvision", "torchaudio", "triton", "numpy", "scipy", "pandas", "sklearn", "transformers", "tokenizers",
    "safetensors", "huggingface_hub", "peft", "timm", "accelerate", "datasets", "lightning", "lightning_fabric",
    "pytorch_lightning", "torchmetrics", "einops", "PIL", "tqdm", "matplotlib", "jax", "tensorflow", "genbound",
)  # fmt: skip
ALWAYS = ("torch", "numpy", "scipy")
MOST = 200_000  # objects that are followed: more are somebody's data
PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type(...), range, slice, decimal.Decimal, fractions.Fraction,
    re.Pattern, torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
CACHED = type(functools.lru_cache(lambda: None))
UNWRAPPED = (staticmethod, classmethod, functools.cached_property)
FUNCTIONS = (types.FunctionType, property, *UNWRAPPED)
# Of a class: where it was written, and what Python keeps in it for itself.
OF_THE_CLASS = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__qualname__"} | {
    "__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__",
    "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl", "__match_args__", "__slots__",
}  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Where something came from, and what an object is called in this process alone.
NAMES = {"_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "_torchdynamo_wrapper_id"}


def code_digest(*objects: Any, counted: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 of everything that calling these objects depends on beside their arguments.

    Args:
        objects: modules, functions, plain values, or containers of them.
        counted: tensors of any shape that count by their names, because their values are counted elsewhere.

    Example:
        >>> double, again, triple = (lambda x: 2 * x), (lambda x: 2 * x), (lambda x: 3 * x)
        >>> code_digest(double) == code_digest(again) != code_digest(triple)
        True
    """
    walk = _Walk(counted or {})
    walk.follow(objects)
    return walk.hexdigest()


class _Walk:
    """Objects in the order in which they are found; one that was met before is named by its number."""

    def __init__(self, counted: Mapping[str, Tensor]):
        self._sha = hashlib.sha256()
        self._counted = {id(tensor): name for name, tensor in counted.items()}
        self._number: dict[int, int] = {}
        self._found: list[Any] = []  # kept, so that no id is given twice
        self._packages = set(ALWAYS)

    def follow(self, objects: Sequence[Any]) -> None:
        """Take in these objects and all that they lead to."""
        self._emit("start", *map(self._name, objects))
        for thing in self._found:  # it grows meanwhile
            self._emit(*self._parts(thing))
            if len(self._found) > MOST:
                return

    def hexdigest(self) -> str:
        """With the versions of the libraries that were met."""
        self._emit(sys.version_info[:3], *(f"{name} {_version(name)}" for name in sorted(self._packages)))
        return self._sha.hexdigest()

    def _emit(self, *tokens: Any) -> None:
        self._sha.update(repr(tokens).encode(errors="backslashreplace") + b"\0")

    def _name(self, thing: Any) -> Any:
        """A plain value as it is, anything else by its number; it is then followed in its turn."""
        if isinstance(thing, enum.Enum):
            return type(thing).__qualname__, thing.name
        if type(thing) in PLAIN:
            return type(thing).__name__, repr(thing)
        if id(thing) not in self._number:
            self._number[id(thing)] = len(self._found)
            self._found.append(thing)
        return self._number[id(thing)]

    def _names(self, things: Iterable[Any]) -> list[Any]:
        return [self._name(thing) for thing in things]

    def _entries(self, entries: Mapping[Any, Any]) -> list[Any]:
        return [(self._name(key), self._name(value)) for key, value in entries.items()]

    def _state(self, state: Mapping[str, Any], without: Iterable[str] = ()) -> list[Any]:
        """Attributes in the order of their names."""
        return [(key, self._name(state[key])) for key in sorted(state.keys() - set(without))]

    def _known(self, file: str | None, module: str | None) -> bool:
        """Whether the code of a file counts by its library's version, which is then counted."""
        library = _library(file, module)
        if library in KNOWN:
            self._packages.add(library)
        return library is not None

    # -- what things are made of ------------------------------------------------------------------------------

    def _parts(self, thing: Any) -> tuple[Any, ...]:
        if isinstance(thing, Tensor):
            return self._tensor(thing)
        if isinstance(thing, np.ndarray | np.generic):
            rows = self._names(thing.tolist()) if thing.dtype == object else hashlib.sha256(thing.tobytes()).digest()
            return "array", str(thing.dtype), thing.shape, rows
        if isinstance(thing, types.CodeType):
            return self._code(thing)
        if isinstance(thing, types.FunctionType):
            return self._function(thing)
        if isinstance(thing, type):
            return self._class(thing)
        if isinstance(thing, nn.Module):
            return self._module(thing)
        return self._bound(thing) or self._container(thing) or self._instance(thing)

    def _tensor(self, tensor: Tensor) -> tuple[Any, ...]:
        if id(tensor) in self._counted:
            return "weight", self._counted[id(tensor)]
        return "tensor", str(tensor.dtype), tuple(tensor.shape), tensor_digest(tensor)

    def _code(self, code: types.CodeType) -> tuple[Any, ...]:
        given = code.co_argcount + code.co_kwonlyargcount
        table = getattr(code, "co_exceptiontable", b"")
        shape = code.co_argcount, code.co_posonlyargcount, code.co_flags, code.co_varnames[:given]
        return "code", code.co_code, table, shape, code.co_names, code.co_freevars, self._names(code.co_consts)

    def _function(self, function: types.FunctionType) -> tuple[Any, ...]:
        known = self._known(function.__code__.co_filename, function.__module__)
        own = self._name(function.__code__), self._name(function.__defaults__), self._name(function.__kwdefaults__)
        cells = [self._name(_content(cell)) for cell in function.__closure__ or ()]
        used = [
            (name, self._title(found) if known or self._is_library(module) else self._name(found))
            for name, found, module in _used(function, known)
        ]
        return "function", own, cells, used, self._state(vars(function), (*NAMES, "__wrapped__"))

    def _title(self, found: Any) -> Any:
        """Of what stands in a library: the name of its own functions and classes; those of others are followed.

        No library is counted for it: one may have put something of its own there when it was imported.
        """
        if isinstance(found, types.FunctionType | type):
            return (found.__module__, found.__qualname__) if _origin(found) else self._name(found)
        if isinstance(found, types.BuiltinFunctionType | types.MethodType | functools.partial):
            return self._name(found)
        return type(found).__qualname__  # the library's own state

    def _is_library(self, module: types.ModuleType | None) -> bool:
        return module is not None and self._known(*_place(module))

    def _is_known_class(self, kind: type) -> bool:
        return self._known(*_place(sys.modules.get(kind.__module__), kind.__module__))

    def _class(self, kind: type) -> tuple[Any, ...]:
        if self._is_known_class(kind):
            return "class", kind.__module__, kind.__qualname__
        return "class", [self._members(base) for base in kind.__mro__[:-1]]

    def _members(self, kind: type) -> Any:
        """What a class says itself; of a library's module class its functions, which may have been replaced."""
        members = {key: value for key, value in vars(kind).items() if key not in OF_THE_CLASS}
        if self._is_known_class(kind):
            functions = {key: value for key, value in members.items() if isinstance(value, FUNCTIONS)}
            # transformers adds methods to torch's classes when it is imported, for whatever reason that is.
            own = {key: value for key, value in functions.items() if _origin(value) in (None, _origin(kind))}
            return kind.__module__, kind.__qualname__, self._state(own) if issubclass(kind, nn.Module) else []
        return self._state({k: v for k, v in members.items() if not isinstance(v, types.MemberDescriptorType)})

    def _module(self, module: nn.Module) -> tuple[Any, ...]:
        """Its classes, its weights, its parts, and whatever else it keeps. It is run in evaluation mode."""
        hooks = [self._names(getattr(module, name, {}).values()) for name in HOOKS]
        inside = [self._entries(getattr(module, name)) for name in ("_parameters", "_buffers", "_modules")]
        state = {key: value for key, value in vars(module).items() if "_hooks" not in key}
        rest = self._state(state, ("training", "_parameters", "_buffers", "_modules", *NAMES))
        written = (
            getattr(module, "code", None) if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule) else ""
        )
        return "module", [self._members(base) for base in type(module).__mro__[:-1]], hooks, inside, rest, written

    def _bound(self, thing: Any) -> tuple[Any, ...]:
        if isinstance(thing, types.MethodType):
            return "method", self._name(thing.__func__), self._name(thing.__self__)
        if isinstance(thing, functools.partial):
            return "partial", self._name(thing.func), self._name(thing.args), self._name(thing.keywords)
        if isinstance(thing, property):
            return "property", *self._names((thing.fget, thing.fset))
        if isinstance(thing, UNWRAPPED):
            inner = thing.func if isinstance(thing, functools.cached_property) else thing.__func__
            return type(thing).__name__, self._name(inner)
        if isinstance(thing, CACHED):
            return "cached", self._name(thing.__wrapped__)
        if isinstance(thing, types.BuiltinFunctionType | types.WrapperDescriptorType | types.MethodDescriptorType):
            self._known(None, getattr(thing, "__module__", None))
            return "builtin", getattr(thing, "__module__", ""), thing.__qualname__
        return ()

    def _container(self, thing: Any) -> tuple[Any, ...]:
        kind = type(thing).__qualname__
        if isinstance(thing, dict | types.MappingProxyType):
            return "mapping", kind, self._entries(thing)
        if isinstance(thing, list | tuple | collections.deque):
            return "sequence", kind, self._names(thing)
        if isinstance(thing, set | frozenset):
            plain = sorted(repr(item) for item in thing if isinstance(item, PLAIN))
            return "set", plain, sorted(type(item).__qualname__ for item in thing if not isinstance(item, PLAIN))
        return ()

    def _instance(self, thing: Any) -> tuple[Any, ...]:
        """An object by its class and what it keeps; of a library's object its class alone, unless it is a config."""
        kind = type(thing)
        title = "object", kind.__module__, kind.__qualname__
        if isinstance(thing, types.ModuleType | pathlib.PurePath):
            return title
        open_one = isinstance(thing, types.SimpleNamespace | argparse.Namespace) or hasattr(kind, "to_dict")
        own = kind.__module__.partition(".")[0] == "genbound"
        if not (open_one or own or _is_own(*_place(sys.modules.get(kind.__module__), kind.__module__))):
            self._is_known_class(kind)
            return title
        if hasattr(kind, "to_dict") and self._is_known_class(kind):  # a config; what is private is bookkeeping
            return *title, self._state({k: v for k, v in vars(thing).items() if not k.startswith("_")}, NAMES)
        slots = [s for base in kind.__mro__ for s in _slots(base) if hasattr(thing, s)]
        state = getattr(thing, "__dict__", {}) | {slot: getattr(thing, slot) for slot in slots}
        return *title, self._name(kind), self._state(state, NAMES)


def tensor_digest(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's values, of any shape; of one without values its text."""
    try:
        return hashlib.sha256(raw_bytes(tensor)).digest()
    except (RuntimeError, NotImplementedError, TypeError):  # quantized or on the meta device
        return hashlib.sha256(repr(tensor).encode()).digest()


def _used(function: types.FunctionType, known: bool) -> Iterator[tuple[str, Any, types.ModuleType | None]]:
    """Every global name that a function's code mentions, what it stands for, and the module that it was found in.

    The module is ``None`` for the function's own; names are looked up in every module that the code mentions.
    """
    codes = list(_codes(function.__code__))
    names = sorted({name for code in codes for name in code.co_names})
    space = function.__globals__
    modules = [] if known else list(_imported(codes, space))
    for name in names:
        if isinstance(space.get(name), types.ModuleType):
            modules.append((name, space[name]))
        elif name in space:
            yield name, space[name], None
    seen: set[int] = set()
    for where, module in modules:  # it grows meanwhile
        if id(module) in seen:
            continue
        seen.add(id(module))
        inside = vars(module)  # never getattr, which would make a lazy module import what it announces
        for name in names:
            if isinstance(inside.get(name), types.ModuleType):
                modules.append((f"{where}.{name}", inside[name]))
            elif name in inside:
                yield f"{where}.{name}", inside[name], module


def _place(module: types.ModuleType | None, name: str | None = None) -> tuple[str | None, str | None]:
    """``(file, name)`` of a module, of which perhaps only the name is known."""
    return getattr(module, "__file__", None), getattr(module, "__name__", name)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of the functions inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)


def _imported(codes: Iterable[types.CodeType], space: Mapping[str, Any]) -> Iterator[tuple[str, types.ModuleType]]:
    """The modules that code imports when it runs, those that are there."""
    for code in codes:
        for step in dis.get_instructions(code):
            if step.opname == "IMPORT_NAME":
                for name in (step.argval, f"{space.get('__package__')}.{step.argval}"):
                    if isinstance(module := sys.modules.get(name), types.ModuleType):
                        yield name, module


def _origin(thing: Any) -> str | None:
    """The known library that a class or a function is from."""
    if isinstance(thing, type):
        return _library(*_place(sys.modules.get(thing.__module__), thing.__module__))
    while not isinstance(thing, types.FunctionType | type(None)):
        inner = thing.fget if isinstance(thing, property) else None
        thing = inner or getattr(thing, "func", None) or getattr(thing, "__func__", None)
    return None if thing is None else _library(thing.__code__.co_filename)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "an empty cell"


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return tuple(s for s in ((slots,) if isinstance(slots, str) else slots) if s not in ("__dict__", "__weakref__"))


def _library(file: str | None, module: str | None = None) -> str | None:
    """The known library that a file belongs to, or a module without one; ``None`` for anybody else's."""
    if file is not None:
        return _library_of(file, tuple(name for name in KNOWN if name in sys.modules))
    name = (module or "builtins").partition(".")[0]
    return name if name in KNOWN or name in sys.stdlib_module_names else None


@functools.cache
def _library_of(file: str, loaded: tuple[str, ...]) -> str | None:
    for name in loaded:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and file.startswith(str(pathlib.Path(origin).parent) + "/"):
            return name
    standard = file.startswith((sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "<frozen"))
    return "stdlib" if standard and not _is_installed(file) else None


def _is_installed(file: str) -> bool:
    return bool({"site-packages", "dist-packages"} & set(pathlib.Path(file).parts))


def _is_own(file: str | None, module: str | None) -> bool:
    """Whether what objects of this module keep is counted: it is no library's, known or not."""
    if file is None:  # a notebook, or what was built in
        return (module or "builtins").partition(".")[0] not in sys.stdlib_module_names
    return _library(file) is None and not _is_installed(file)


def _version(package: str) -> str:
    found = getattr(sys.modules.get(package), "__version__", None)
    if found is None:
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            return ""
    return str(found)
