"""The engine that is asked for, or that this process was started for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from genbound.engines.base import Engine
from genbound.engines.in_process import InProcess
from genbound.engines.launch import Launch, launched
from genbound.errors import GenboundError, let_another_tell

ENGINES = ("auto", "process", "distributed")


@contextlib.contextmanager
def open_engine(name: str = "auto") -> Iterator[tuple[Engine, Launch | None]]:
    """The engine, and how this process was started.

    Args:
        name: ``auto`` means ``distributed`` where several processes were started together, else ``process``.

    Raises:
        GenboundError: there is no such engine, or no companions for it.
    """
    if name not in ENGINES:
        raise GenboundError(f"engine {name!r} is unknown: use one of {', '.join(ENGINES)}")
    launch = None if name == "process" else launched()
    if launch is None:
        if name == "distributed":
            raise GenboundError("--engine distributed has no companions: start it by torchrun, accelerate or srun")
        yield InProcess(), None
        return
    from genbound.engines.distributed import Distributed

    if launch.rank:
        let_another_tell()
    engine = Distributed(launch)
    try:
        yield engine, launch
    except BaseException:
        engine.abandon()
        raise
    engine.close()
