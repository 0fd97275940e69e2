"""The engine that is asked for, or that this process was started for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from genbound.engines.base import Engine
from genbound.engines.in_process import InProcess
from genbound.engines.launch import Launch, launched
from genbound.errors import GenboundError, let_another_tell

ENGINES = ("auto", "local", "torchrun")
RAY = "ray"


@contextlib.contextmanager
def open_engine(name: str = "auto", workers: int | None = None, device: str = "cpu") -> Iterator[Engine]:
    """The engine.

    Args:
        name: ``local`` is this process; ``torchrun`` are the processes that torchrun, accelerate launch or srun has
            started together; ``auto`` means these where there are any, else this one. ``ray`` starts actors on this
            machine, ``ray://ADDRESS`` on a cluster that is there (``ray://auto``: the one that this machine is in).
        workers: how many actors; ``None`` means one for each core, or each accelerator.
        device: where the actors measure: ``cuda`` gives each an accelerator of its own.

    Raises:
        GenboundError: there is no such engine, or no companions for it.
    """
    engine = _opened(name, workers, device)
    try:
        yield engine
    except BaseException:
        engine.abandon()
        raise
    engine.close()


def _opened(name: str, workers: int | None, device: str) -> Any:
    scheme, _, address = name.partition("://")
    if workers is not None and (scheme != RAY or workers < 1):
        raise GenboundError(
            "--workers is for --engine ray, and at least 1: torchrun has --nproc-per-node"
            if scheme != RAY
            else f"--workers {workers} compute nothing: give at least 1"
        )
    if scheme == RAY:
        return _ray(address, workers, device.startswith("cuda"))
    if name not in ENGINES:
        raise GenboundError(f"engine {name!r} is unknown: use one of {', '.join(ENGINES)}, ray or ray://ADDRESS")
    launch = None if name == "local" else launched()
    if launch is not None:
        return _distributed(launch)
    if name == "torchrun":
        raise GenboundError("--engine torchrun has no companions: start it by torchrun, accelerate or srun")
    return InProcess()


def _distributed(launch: Launch) -> Engine:
    from genbound.engines.distributed import Distributed

    if launch.rank:
        let_another_tell()
    return Distributed(launch)


def _ray(address: str, workers: int | None, accelerators: bool) -> Engine:
    import torch

    from genbound.engines.ray_actors import Leader

    if not address:
        workers = workers or os.cpu_count() or 1
    if "OMP_NUM_THREADS" not in os.environ and not (address and accelerators):
        # The actors have as many threads as this process. They share its cores; in a cluster each is given one.
        torch.set_num_threads(1 if address else max(1, (os.cpu_count() or 1) // (workers or 1)))
    return Leader(address and (address if address == "auto" else f"ray://{address}"), workers, accelerators)
