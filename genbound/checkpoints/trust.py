"""Which code the settings beside a checkpoint may name: what the user has named too, and nothing else.

``genbound.yaml`` comes with the checkpoint, so whoever wrote the checkpoint has written it. A SPEC in it that names
code (``FILE.py:name``, ``pkg.mod:name``) is run under ``trust_remote_code``, or where :func:`genbound.save_spec` wrote
the same SPEC for the same place on this machine and the file is as it was then.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from genbound.errors import GenboundError

# Schemes that are read and never run. Whatever else has a colon is taken for code.
DATA_SCHEMES = frozenset({"npz", "csv", "jsonl", "parquet", "imagefolder", "hf", "run", "webdataset"})
PLAIN = {
    "model": frozenset({"hf", "timm", "torchvision"}), "data": DATA_SCHEMES, "test_data": DATA_SCHEMES,
    "loss": frozenset[str](),
}  # fmt: skip
_seen: set[str] = set()  # what this process has named itself


def code_in(settings: Mapping[str, object]) -> dict[str, str]:
    """The settings that name code: setting -> what is called, without a data SPEC's options."""
    called = {
        name: spec.partition("?")[0] if PLAIN[name] is DATA_SCHEMES else spec
        for name, spec in settings.items()
        if name in PLAIN and isinstance(spec, str)
    }
    return {name: spec for name, spec in called.items() if _names_code(spec, PLAIN[name])}


def _names_code(spec: str, plain: frozenset[str]) -> bool:
    scheme, colon, _ = spec.partition(":")
    return bool(colon) and scheme not in plain


def check_code(settings: Mapping[str, object], folder: str | os.PathLike, trusted: bool) -> None:
    """Refuse settings that name code which nobody has allowed.

    Args:
        settings: what the file beside a checkpoint says, with paths as they would be used.
        folder: where that file lies.
        trusted: the user allows all of it.

    Raises:
        GenboundError: with what would be run, and how to allow it.
    """
    if trusted:
        return
    foreign = {name: spec for name, spec in code_in(settings).items() if not is_remembered(spec, folder)}
    if foreign:
        what = ", ".join(f"{name}: {spec!r}" for name, spec in foreign.items())
        flags = " ".join(f"--{name.replace('_', '-')} {spec!r}" for name, spec in foreign.items())
        raise GenboundError(
            f"{str(Path(folder, 'genbound.yaml'))!r} comes with the checkpoint and would run code ({what}), which you "
            f"have not asked for: read that code, then allow it with --trust-remote-code (trust_remote_code=True), or "
            f"name it yourself ({flags})"
        )


def remember(settings: Mapping[str, object], folder: str | os.PathLike, lasting: bool) -> None:
    """Keep in mind that the user has named this code for this place.

    Args:
        settings: with paths as they would be used; those that name no code are nothing to remember.
        folder: where the settings are written.
        lasting: also for later processes, in the user's cache; where that cannot be written, nothing is kept.
    """
    for spec in code_in(settings).values():
        key = _key(spec, folder)
        _seen.add(key)
        # A module's name means another module in another directory, so it is remembered for this process alone.
        if lasting and _file(spec) is not None and (place := _cache()) is not None:
            try:
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
                (place / key).touch(mode=0o600)
            except OSError:
                return


def is_remembered(spec: str, folder: str | os.PathLike) -> bool:
    """The user has named this SPEC for this place, and its file is as it was then."""
    key = _key(spec, folder)
    if key in _seen:
        return True
    place = None if _file(spec) is None else _cache()
    return place is not None and _is_mine(place) and (place / key).is_file()


def _file(spec: str) -> Path | None:
    """The file that a SPEC names; ``None`` for a module."""
    source = spec.rpartition(":")[0]
    return Path(source).expanduser().resolve() if source.endswith(".py") else None


def _key(spec: str, folder: str | os.PathLike) -> str:
    """A digest of the SPEC, the place that says it, and the code's file (of a module: the directory we are in)."""
    file = _file(spec)
    if file is None:
        parts = [spec, str(Path.cwd())]
    else:
        name = spec.rpartition(":")[2]
        content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "absent"
        parts = [str(file), name, content]
    return hashlib.sha256("\0".join([str(Path(folder).resolve()), *parts]).encode()).hexdigest()


def _cache() -> Path | None:
    """Where SPECs are remembered: ``GENBOUND_CACHE``, or else the user's cache; ``None`` where there is no such place.

    Never a relative path: that would lie beside whatever the user has downloaded.
    """
    own, shared = os.environ.get("GENBOUND_CACHE"), os.environ.get("XDG_CACHE_HOME")
    place = Path(own) if own is not None else Path(shared or os.path.expanduser("~/.cache"), "genbound")
    return place / "trusted" if place.is_absolute() else None


def _is_mine(place: Path) -> bool:
    """Nobody else may have written there."""
    try:
        found = place.stat()
    except OSError:
        return False
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not others)
