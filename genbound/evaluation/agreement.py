"""What several processes must have in common before they measure together."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from typing import TYPE_CHECKING

import numpy as np
import torch

from genbound.engines.base import Engine
from genbound.errors import GenboundError
from genbound.network.identity import agree, kinds_of, weights_digest
from genbound.network.problem import Problem
from genbound.network.weights import BaseProblem
from genbound.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


VISIBLE = "CUDA_VISIBLE_DEVICES"


def agree_on(problem: BaseProblem, engine: Engine) -> None:
    """See that all processes have the same problem, and let them pass it in batches of one size with as many threads.

    Args:
        problem: as this process has it; its ``batch_size`` and ``memory_budget`` become the smallest of all.
        engine: that of the run; one process agrees with itself.

    Raises:
        GenboundError: they have different devices, versions, weights, samples, or networks that answer differently.
    """
    if engine.ranks == 1:
        return
    if len(problem.devices) > 1:
        _refuse_shared(engine.gather((socket.gethostname(), os.environ.get(VISIBLE, ""))))
    torch.set_num_threads(engine.settle(torch.get_num_threads))
    if isinstance(problem, Problem):
        sizes = engine.gather((problem.batch_size, problem.memory_budget))
        problem.batch_size, problem.memory_budget = engine.settle(lambda: [min(of) for of in zip(*sizes, strict=True)])
    facts, answers = engine.together(lambda: _facts(problem)), engine.together(problem.answers)
    everywhere = engine.gather((facts, answers))
    engine.together(lambda: _refuse_unlike(everywhere, problem.dtype))


def _refuse_shared(everywhere: Sequence[tuple[str, str]]) -> None:
    """Refuse ranks that each spread the layers over several devices, and were not given devices of their own.

    Args:
        everywhere: of each rank, its machine and the devices that it was told to see.
    """
    seen: set[tuple[str, str]] = set()
    for rank, (machine, visible) in enumerate(everywhere):
        own = {(machine, number.strip()) for number in visible.split(",")}
        if not visible or own & seen:
            raise GenboundError(
                f"a device map spreads the layers over several devices, and rank {rank} has none of its own: start one "
                f"process, or give each rank its devices by {VISIBLE}"
            )
        seen |= own


def _facts(problem: BaseProblem) -> dict[str, str]:
    """What must be the same, cheapest and plainest first."""
    samples = repr((len(problem.data or ()), list(problem.indices), problem.num_data))
    return {
        "kinds of device": f"{kinds_of(problem.devices)}, {platform.machine()}",
        "versions": f"genbound {__version__}, torch {torch.__version__}, numpy {np.__version__}",
        "weights, layers or code": weights_digest(problem),
        "samples": hashlib.sha256(samples.encode()).hexdigest(),
    }


def _refuse_unlike(
    everywhere: Sequence[tuple[Mapping[str, str], Mapping[str, np.ndarray]]], dtype: torch.dtype
) -> None:
    first, first_answers = everywhere[0]
    for rank, (facts, answers) in enumerate(everywhere):
        for what, value in facts.items():
            if value != first[what]:
                raise GenboundError(
                    f"ranks 0 and {rank} have different {what} ({first[what][:40]} and {value[:40]}): start all of "
                    "them alike"
                )
        if not agree(first_answers, answers, dtype):
            raise GenboundError(
                f"the networks of ranks 0 and {rank} answer differently to the same samples: see that both read the "
                "same files"
            )
