"""A name in the user's own code, ``FILE.py:name`` or ``pkg.mod:name``: import it, call it, report errors."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from genbound.errors import GenboundError


@contextlib.contextmanager
def rng_untouched() -> Iterator[None]:
    """Restore the global random states of Python, NumPy and torch on the way out.

    Building a model draws its initial weights and a user's file may call ``torch.manual_seed``: neither may
    show in the numbers that the caller draws afterwards.
    """
    python, numpy = random.getstate(), np.random.get_state()
    # Where CUDA has not started there is no state to keep, and asking for it would start it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def call_user(
    spec: str,
    base_dir: str | os.PathLike = ".",
    what: str = "function",
    arguments: Callable[[Any], dict[str, Any]] | None = None,
) -> Any:
    r"""Call the function that ``spec`` names, by default without arguments.

    The directory of the file (for a module: ``base_dir``) is on ``sys.path`` only while this call runs. What
    the code prints goes to stderr, because stdout belongs to genbound's table, and no ``__pycache__`` is left
    beside the file.

    Args:
        spec: ``FILE.py:name`` (relative to ``base_dir``) or ``pkg.mod:name``.
        base_dir: the directory that relative names start from.
        what: what the name stands for, used in the messages ("model factory", "data function").
        arguments: function found -> its keyword arguments.

    Returns:
        Whatever the function returns.

    Raises:
        GenboundError: the file or the name is missing, or the code raised (with its type, message and line).
    """
    source, separator, name = spec.rpartition(":")
    if not separator or not source or not name:
        raise GenboundError(f"{what} {spec!r} names no function: write FILE.py:NAME or pkg.mod:NAME")
    file = Path(base_dir, source).expanduser().resolve() if source.endswith(".py") else None
    if file is not None and not file.is_file():
        raise GenboundError(f"{what} {spec!r}: no file {str(file)!r}; check the path")
    folder = file.parent if file else Path(base_dir).resolve()
    with _on_path(folder), rng_untouched(), contextlib.redirect_stdout(sys.stderr):
        try:
            module = _import_file(file) if file else importlib.import_module(source)
            function = getattr(module, name, None)
            if callable(function):
                return function(**({} if arguments is None else arguments(function)))
        except GenboundError:
            raise
        except (Exception, SystemExit) as error:
            raise GenboundError(f"{what} {spec!r} raised {describe(error, file)}") from error
    raise GenboundError(
        f"{what} {spec!r}: {source} has no function {name!r}; it defines {_functions(module) or 'none'}"
    )


def get_user(spec: str, base_dir: str | os.PathLike = ".", what: str = "function") -> Callable[..., Any]:
    """The function that ``spec`` names, itself; see :func:`call_user`."""
    found: list[Any] = []

    def keep(function: Any) -> dict[str, Any]:
        found.append(function)
        raise _Found

    try:
        call_user(spec, base_dir, what, keep)
    except _Found:
        pass
    return found[0]


class _Found(BaseException):
    """Leaves :func:`call_user` with the function uncalled."""


def describe(error: BaseException, file: Path | None = None) -> str:
    """``ValueError at line 3 of nets.py: message``, for the innermost line of ``file`` that was running."""
    where = ""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is None or frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename:
        where = f" at line {error.lineno} of {Path(error.filename).name}"
    elif own:
        where = f" at line {own[-1].lineno} of {Path(own[-1].filename).name}"
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}{where}: {message or 'no message'}"


def _import_file(file: Path) -> ModuleType:
    # A name of its own: the user's models.py must neither shadow nor be shadowed by another models.py.
    name = f"genbound_user_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    loader = SourceFileLoader(name, str(file))
    module_spec = ModuleSpec(name, loader, origin=str(file))
    module_spec.has_location = True  # gives the module its __file__
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up here
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _functions(module: ModuleType) -> str:
    own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    return ", ".join(key for key in own if getattr(module, key).__module__ == module.__name__)


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    path, bytecode = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode
