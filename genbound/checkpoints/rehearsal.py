"""Play a file of ``torch.save`` through with stand-ins, before torch allocates anything for it.

torch's restricted reader runs no foreign code, and still lets a pickle of a few bytes allocate any amount:
``bytearray(4 << 30)``, an empty tensor class called with a size, a view far behind its storage, which then grows. Here
every name is a stand-in and every call is looked at: what an honest file never calls is refused, and so is a tensor
that claims more than its storage has.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

MOST_DIMENSIONS = 16
MOST_COPIED = 10_000_000  # items that all calls together are given: each of them copies its own


class Refused(pickle.UnpicklingError):
    """What the file would do, in words that go behind its name."""


class Name:
    """Stands for a class or a function; what is made by calling it is inert."""

    def __init__(self, said: str, player: _Player):
        self.said, self.player = said, player

    def __call__(self, *arguments: Any) -> Any:
        """What an honest file gets for this call.

        Raises:
            Refused: no honest file calls this, or not so.
        """
        self.player.copied += sum(len(item) for item in arguments if isinstance(item, list | tuple | dict | str))
        if self.player.copied > MOST_COPIED:
            raise Refused("copies what it holds over and over")
        if (call := CALLS.get(self.said)) is not None:
            return call(*arguments)
        if self.said.startswith(MAKERS) or (self.said.startswith("torch.") and self.said.endswith(MADE)):
            raise Refused(f"calls {self.said}, which no state dict needs")
        return Thing()


class Thing:
    """Stands for an object of which only the place in the file matters."""

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Nothing is kept."""

    def extend(self, items: Any) -> None:
        """Nothing is kept."""

    def add(self, item: Any) -> None:
        """Nothing is kept."""

    def update(self, items: Any) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class Storage:
    """A storage of so many elements."""

    numel: int


@dataclass(frozen=True)
class Claimed:
    """A tensor of this shape."""

    shape: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        raise Refused("changes a tensor after it was made")


def _shape(value: Any) -> tuple[int, ...]:
    sizes = value if isinstance(value, tuple) else ()
    if (
        not isinstance(value, tuple)
        or len(sizes) > MOST_DIMENSIONS
        or not all(type(n) is int and n >= 0 for n in sizes)
    ):
        raise Refused("holds a tensor whose shape is none")
    return sizes


def _strided(storage: Any = None, offset: Any = 0, size: Any = (), stride: Any = (), *_: Any) -> Claimed:
    shape, steps = _shape(size), _shape(stride)
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0 or len(shape) != len(steps):
        raise Refused("holds a tensor that no storage belongs to")
    if all(shape) and offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) >= storage.numel:
        raise Refused("holds a tensor that claims more values than are stored")
    return Claimed(shape)


def _sparse(layout: Any = None, data: Any = None, *_: Any) -> Claimed:
    """Its indices are checked by torch's own invariants, and its size where it is made dense."""
    sizes = [part for part in data if isinstance(part, tuple)] if isinstance(data, tuple) else []
    if len(sizes) != 1:
        raise Refused("holds a sparse tensor without its parts")
    return Claimed(_shape(sizes[0]))


def _again(inner: Any = None, *_: Any) -> Any:
    """A parameter is its tensor."""
    if not isinstance(inner, Claimed):
        raise Refused("holds a parameter that is no tensor")
    return inner


def _from_type(function: Any = None, kind: Any = None, arguments: Any = (), *_: Any) -> Any:
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Refused("calls torch._tensor._rebuild_from_type_v2 with something else")
    return function(*arguments)


def _mapping(*items: Any) -> OrderedDict[Any, Any]:
    return (
        OrderedDict(items[0]) if items and isinstance(items[0], list) else OrderedDict()
    )  # Python 2 wrote the items into the call


def _bytearray(*content: Any) -> Thing:
    if any(isinstance(item, int) for item in content):
        raise Refused("calls bytearray with a size")
    return Thing()


def _encode(text: Any = "", encoding: Any = "latin1", *_: Any) -> Thing:
    if encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise Refused(f"encodes a text as {encoding!r:.40}")
    return Thing()


def _meta(dtype: Any = None, size: Any = (), *_: Any) -> Claimed:
    return Claimed(_shape(size))


def _size(*items: Any) -> tuple[int, ...]:
    return _shape(tuple(items[0])) if items and isinstance(items[0], tuple | list) else ()


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _strided,
    "torch._utils._rebuild_tensor_v2": _strided,
    "torch._utils._rebuild_tensor_v3": _strided,
    "torch._utils._rebuild_qtensor": _strided,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_parameter": _again,
    "torch._utils._rebuild_parameter_with_state": _again,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.nn.parameter.Parameter": _again,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encode,
}
# What else makes tensors and storages, and what their names end in.
MAKERS = ("torch._utils.", "torch.storage.", "torch.nested.", "torch.sparse.", "torch.distributed.tensor.")
MADE = ("Tensor", "Storage")


# The one in C allocates for whatever index a memo is given; this one, which has no types, is what torch's own follows.
_Unpickler: Any = vars(pickle)["_Unpickler"]


class _Player(_Unpickler):
    dispatch: dict[int, Any] = {
        code: function
        for code, function in _Unpickler.dispatch.items()
        if code not in {pickle.BYTEARRAY8[0], pickle.NEXT_BUFFER[0], pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0]}
    }

    copied = 0

    def find_class(self, module: str, name: str) -> Name:
        return Name(f"{'builtins' if module == '__builtin__' else module}.{name}", self)

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]  # a class with its source, which is never looked at
        if not isinstance(pid, tuple) or len(pid) < 5 or type(pid[4]) is not int or not 0 <= pid[4] < 1 << 48:
            raise Refused("names a storage in an unknown way")
        return Storage(pid[4])

    def _instantiate(self, made: Any, arguments: Any) -> None:
        self.append(made(*arguments))

    def load_newobj(self) -> None:
        arguments, made = self.stack.pop(), self.stack.pop()
        self.append(made(*arguments))

    dispatch[pickle.NEWOBJ[0]] = load_newobj


class _Bounded:
    """A stream that is never asked for more bytes than it has: the answer would be allocated first."""

    def __init__(self, stream: IO[bytes], size: int):
        self.stream, self.size = stream, size

    def read(self, number: int) -> bytes:
        return self.stream.read(min(number, self.size))

    def readline(self) -> bytes:
        return self.stream.readline(1 << 20)


def rehearse(stream: IO[bytes], size: int, pickles: int = 1) -> None:
    """Play so many pickles through, one behind the other.

    Args:
        stream: opened at the first.
        size: bytes in the stream.
        pickles: how many.

    Raises:
        Refused: something that an honest file never does.
        Exception: whatever damaged bytes make of a pickle; the caller says so in its own words.
    """
    bounded = _Bounded(stream, size)
    for _ in range(pickles):
        _Player(bounded, encoding="utf-8").load()
