"""Files of ``torch.save``: their content as plain data.

Nothing in them is executed, and nothing oversized is allocated.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from genbound.checkpoints.rehearsal import Refused, rehearse
from genbound.errors import GenboundError

# Packages whose values lie beside the weights in training checkpoints (arguments, paths, scores). Files that call
# anything else to rebuild an object are refused: no honest checkpoint needs it.
BENIGN = frozenset(
    "argparse collections datetime enum lightning lightning_fabric numpy omegaconf pathlib pytorch_lightning torch "
    "transformers types typing uuid".split()
)
BUILTIN_TYPES = frozenset("bytearray complex dict frozenset list object range set slice tuple type".split())
STATELESS = "save model.state_dict() as safetensors (safetensors.torch.save_file) and give that"


class _InertType(type):
    benign: bool
    stands_for: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not cls.benign:
            raise pickle.UnpicklingError(f"calls {cls.stands_for}")
        make: Any = cls.__new__
        return make(cls)


class Inert(metaclass=_InertType):
    """Stands in for an object of a foreign class: it keeps the object's state as data and can do nothing.

    A pickle names classes and functions, and rebuilding its objects runs them. Here each name is replaced by a
    subclass of this one, so that the weights beside such objects can be read although none of their code exists here.
    """

    benign, stands_for = False, ""
    state: dict[str, Any]

    def __new__(cls, *args: Any) -> Inert:
        """An empty stand-in; what it is called with is not looked at."""
        self = object.__new__(cls)
        self.state = {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"state": state}


def _empty_dict(*args: Any) -> collections.OrderedDict:
    return collections.OrderedDict()


def _stand_in(name: str) -> tuple[Any, str]:
    module, _, last = name.rpartition(".")
    if name == "collections.defaultdict":
        return _empty_dict, name
    benign = module.split(".")[0] in BENIGN or (module in ("builtins", "__builtin__") and last in BUILTIN_TYPES)
    return _InertType(last or "Inert", (Inert,), {"benign": benign, "stands_for": name}), name


def read_torch(file: Path) -> Any:
    """The content of a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file.

    Tensors, containers and numbers are read as they are; objects of other classes become :class:`Inert`.

    Raises:
        GenboundError: no such file, damaged, larger than what it claims, or a pickle that calls functions.
    """
    try:
        if zipfile.is_zipfile(file):
            foreign = _check_archive(file)
        else:
            foreign = []
            _check_legacy(file)
        # With the invariants: an index outside a sparse tensor would be written to when it is made dense.
        with safe_globals([_stand_in(name) for name in foreign]), torch.sparse.check_sparse_tensor_invariants():
            return torch.load(file, map_location="cpu", weights_only=True)
    except GenboundError:
        raise
    except Refused as error:
        raise GenboundError(f"{str(file)!r} {error}: {STATELESS}") from error
    except pickle.UnpicklingError as error:
        # torch refuses foreign code with the same exception that damaged bytes give.
        text = str(error)
        if any(word in text for word in ("calls ", "GLOBAL", "blocked", "reduce", "Can only")):
            raise GenboundError(
                f"{str(file)!r} is a pickle with more than tensors in it ({_brief(text)}); "
                "pickled code is never executed: " + STATELESS
            ) from error
        raise GenboundError(f"{str(file)!r} is no readable torch file (damaged?); save it again") from error
    except Exception as error:  # torch.load raises whatever zipfile, pickle and its own C++ reader do
        raise GenboundError(
            f"{str(file)!r} is no readable torch file ({_brief(str(error)) or type(error).__name__}); "
            "save it again, best as safetensors"
        ) from error


def _check_archive(file: Path) -> list[str]:
    """Refuse archives that unpack to more than they hold; the foreign names of the others."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    unpacked, size = sum(entry.file_size for entry in entries), file.stat().st_size
    if unpacked > 64 * size + (1 << 20):
        raise GenboundError(
            f"{str(file)!r} has {size} bytes and unpacks to {unpacked}: it is compressed like a zip bomb, "
            "not by torch.save; save it again"
        )
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names or any("/code/" in entry.filename for entry in entries):
        raise GenboundError(
            f"{str(file)!r} is a TorchScript archive, which is a program; save its weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
        )
    if "data.pkl" not in names:
        what = "an archive of torch.export" if any(name.endswith("model.json") for name in names) else "a zip archive"
        raise GenboundError(f"{str(file)!r} is {what} and not a file of torch.save; {STATELESS}")
    with zipfile.ZipFile(file) as archive:
        for entry in (entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"):
            with archive.open(entry) as stream:
                rehearse(stream, entry.file_size)
    return get_unsafe_globals_in_checkpoint(file)


def _check_legacy(file: Path) -> None:
    """Refuse a file (before torch 1.6) that announces more bytes of tensors than it has, before they are allocated."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with file.open("rb") as stream:
        first = stream.read(1)
    if first not in (b"\x80", b"P"):  # a pickle, or a zip archive without its end
        raise GenboundError(f"{str(file)!r} is no readable torch file (damaged, or of another program?); save it again")
    with file.open("rb") as stream:
        rehearse(stream, file.stat().st_size, pickles=4)  # the magic number, the version, the machine, the content
    with FakeTensorMode():
        content = torch.load(file, weights_only=True)
    announced = sum({id(t.untyped_storage()): t.untyped_storage().nbytes() for t in _tensors(content)}.values())
    if announced > file.stat().st_size:
        raise GenboundError(
            f"{str(file)!r} announces {announced} bytes of tensors and is smaller; it is damaged, save it again"
        )


def _tensors(content: Any) -> list[Tensor]:
    if isinstance(content, Tensor):
        return [content]
    if isinstance(content, dict):
        content = list(content.values())
    return [t for item in content for t in _tensors(item)] if isinstance(content, list | tuple) else []


def module_state(inert: Inert) -> dict[str, Tensor] | None:
    """The state dict of a module that was saved whole, from the data of its stand-in; ``None`` for other objects."""
    if not isinstance(inert.state.get("_parameters"), dict) or not isinstance(inert.state.get("_modules"), dict):
        return None
    skipped = inert.state.get("_non_persistent_buffers_set")
    skipped = skipped if isinstance(skipped, set | frozenset | list) else ()
    found = {name: value for name, value in inert.state["_parameters"].items() if isinstance(value, Tensor)}
    buffers = inert.state.get("_buffers", {})
    found |= {name: value for name, value in buffers.items() if isinstance(value, Tensor) and name not in skipped}
    for name, child in inert.state["_modules"].items():
        inner = module_state(child) if isinstance(child, Inert) else None
        found |= {f"{name}.{key}": value for key, value in (inner or {}).items()}
    return found


def _brief(text: str) -> str:
    text = " ".join(text.replace("``", "").split())
    for start in ("calls ", "Unsupported global: GLOBAL ", "Trying to load unsupported GLOBAL "):
        if start in text:
            return "it names " + text.split(start, 1)[1].split()[0]
    return text[:120]
