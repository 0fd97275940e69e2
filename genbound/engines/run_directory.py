"""The directory of a run: it can be written, and one run writes there at a time.

The lock is the system's own, on ``DIR/.lock``: it ends with its process, however that ends, so a run that was killed
leaves nothing to clear away. Where the file system knows no locks the run says so and goes on without.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from genbound.engines.base import Engine
from genbound.engines.in_process import InProcess
from genbound.errors import GenboundError, tell
from genbound.files import cannot_write, remove_left_over, temporary_name

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

PROBE = 1 << 20  # bytes that are written and removed again: results are of that order
FILES = ("results.json", "layers.csv", "table.md", "samples.parquet", "*.png", "SHA256SUMS")
_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())


@contextlib.contextmanager
def writing_to(folder: str | os.PathLike | None, engine: Engine | None = None) -> Iterator[None]:
    """Nobody else writes results to this directory meanwhile; it is made if it is not there.

    Args:
        folder: the directory; ``None`` asks for none. Asked for again inside, it is held already.
        engine: that of a run in several processes: the first of them holds the directory for all.

    Raises:
        GenboundError: it cannot be written, the disk is full, or another run is writing there.
    """
    with contextlib.ExitStack() as held:
        (engine or InProcess()).settle(lambda: held.enter_context(_holding(folder)))
        yield


@contextlib.contextmanager
def _holding(folder: str | os.PathLike | None) -> Iterator[None]:
    place = None if folder is None else Path(folder).absolute()
    if place is None or place in _held.get():
        yield
        return
    if place.exists() and not place.is_dir():
        raise GenboundError(f"{folder} is a file: give a directory for the results")
    new = not place.exists()
    _probe(place)
    lock = _locked(place)
    for inside in (place, place / "parts"):
        remove_left_over(inside, "probe", "answers-*", *FILES)
    token = _held.set(_held.get() | {place})
    try:
        yield
    finally:
        _held.reset(token)
        if lock is not None:
            with contextlib.suppress(OSError):
                (place / ".lock").unlink()
            os.close(lock)
        for empty in (place / "parts", place) if new else (place / "parts",):
            with contextlib.suppress(OSError):  # something was written
                empty.rmdir()


def _probe(place: Path) -> None:
    """Write what results need and take it away: better now than when they have been measured."""
    parts = place / "parts"
    probe = temporary_name(parts / "probe")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        try:
            with open(probe, "wb") as file:
                file.write(os.urandom(PROBE))
                file.flush()
                os.fsync(file.fileno())
            (place / probe.name).touch()
        finally:
            probe.unlink(missing_ok=True)
            (place / probe.name).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(place, error) from error


def _locked(place: Path) -> int | None:
    """The descriptor of the lock; ``None`` where there are no locks."""
    path = place / ".lock"
    if fcntl is None:
        _tell_without(place, "this system has no file locks")
        return None
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            _tell_without(place, str(error.strerror))
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = _read(lock)
            os.close(lock)
            raise GenboundError(
                f"another run is writing to {place} ({who}): wait until it has ended, or give this one an --out of its "
                "own"
            ) from None
        except OSError as error:
            os.close(lock)
            _tell_without(place, str(error.strerror))
            return None
        # Who held it before may have removed the file after we had opened it: then the lock is on nothing.
        if _is_file(path, lock):
            _write(lock)
            return lock
        os.close(lock)


def _tell_without(place: Path, reason: str) -> None:
    tell(f"{place} cannot be locked ({reason}): see to it that no other run writes there")


def _is_file(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except OSError:
        return False


def _write(lock: int) -> None:
    """Who holds it, for the message that others get."""
    said = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(said).encode(), 0)


def _read(lock: int) -> str:
    try:
        said = json.loads(os.pread(lock, 1000, 0))
        return f"process {int(said['process'])} on {str(said['host'])[:80]} since {str(said['since'])[:20]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said who it is"
