"""What several processes must have in common before they measure together."""

from __future__ import annotations

import hashlib
import platform
from typing import TYPE_CHECKING

import numpy as np
import torch

from genbound.engines.base import Engine
from genbound.errors import GenboundError
from genbound.network.identity import agree, kind_of, weights_digest
from genbound.network.problem import Problem
from genbound.network.weights import BaseProblem
from genbound.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
    torch.set_num_threads(engine.settle(torch.get_num_threads))
    if isinstance(problem, Problem):
        sizes = engine.gather((problem.batch_size, problem.memory_budget))
        problem.batch_size, problem.memory_budget = engine.settle(lambda: [min(of) for of in zip(*sizes, strict=True)])
    facts, answers = engine.together(lambda: _facts(problem)), engine.together(problem.answers)
    everywhere = engine.gather((facts, answers))
    engine.together(lambda: _refuse_unlike(everywhere, problem.dtype))


def _facts(problem: BaseProblem) -> dict[str, str]:
    """What must be the same, cheapest and plainest first."""
    samples = repr((len(problem.data or ()), list(problem.indices), problem.num_data))
    return {
        "kinds of device": f"{kind_of(problem.device)}, {platform.machine()}",
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
