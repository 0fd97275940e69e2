"""The engine that is asked for, or that this process was started for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from genbound.engines.base import Engine
from genbound.engines.in_process import InProcess
from genbound.engines.launch import Launch, launched
from genbound.errors import GenboundError, let_another_tell

ENGINES = ("auto", "local", "torchrun")


@contextlib.contextmanager
def open_engine(name: str = "auto") -> Iterator[tuple[Engine, Launch | None]]:
    """The engine, and how this process was started.

    Args:
        name: ``local`` is this process; ``torchrun`` are the processes that torchrun, accelerate launch or srun has
            started together; ``auto`` means these where there are any, else this one.

    Raises:
        GenboundError: there is no such engine, or no companions for it.
    """
    if name not in ENGINES:
        raise GenboundError(f"engine {name!r} is unknown: use one of {', '.join(ENGINES)}")
    launch = None if name == "local" else launched()
    if launch is None:
        if name == "torchrun":
            raise GenboundError("--engine torchrun has no companions: start it by torchrun, accelerate or srun")
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
