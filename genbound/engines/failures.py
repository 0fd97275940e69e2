"""Failures that several processes share: one reports, all end."""

from __future__ import annotations

import pickle

from genbound.errors import GenboundError, first_line

# What stands for an exception that cannot travel, or is another library's: what is done on it depends on the kind.
PLAIN = (MemoryError, KeyError, NotImplementedError, TypeError, ValueError, RuntimeError)


def packed(error: BaseException) -> list[BaseException]:
    """The exception and its causes, as ones that any process can read."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        found.append(_portable(cause))
        cause = cause.__cause__
    return found


def unpacked(chain: list[BaseException], where: str) -> BaseException:
    """The exception again; a message for users begins with where it came from."""
    if isinstance(chain[0], GenboundError):
        chain = [GenboundError(f"{where}{chain[0]}"), *chain[1:]]
    for error, cause in zip(chain, chain[1:], strict=False):
        error.__cause__ = cause
    return chain[0]


def _portable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        kind = next((kind for kind in PLAIN if isinstance(error, kind)), RuntimeError)
        return kind(first_line(error))


def share(error: BaseException, speaks: bool) -> BaseException:
    """Mark a failure that every process has; ``speaks`` says whether this one reports it."""
    error.genbound_shared, error.genbound_speaks = True, speaks  # type: ignore[attr-defined]
    return error


def is_shared(error: BaseException) -> bool:
    """Whether every process has this failure."""
    return getattr(error, "genbound_shared", False)


def speaks(error: BaseException) -> bool:
    """Whether this process is the one to report it."""
    return getattr(error, "genbound_speaks", True)
