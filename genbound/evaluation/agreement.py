"""What several processes must have in common before they measure together."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from typing import TYPE_CHECKING

import numpy as np
import torch

from genbound.data.sample_parts import leaves
from genbound.engines.base import Engine
from genbound.errors import GenboundError
from genbound.network.identity import ASKED, SHOWN, agree, kinds_of, weights_digest
from genbound.network.problem import Problem
from genbound.network.weights import BaseProblem
from genbound.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


VISIBLE = "CUDA_VISIBLE_DEVICES"


def agree_on(problem: BaseProblem, engine: Engine, asked: Mapping[str, str] | None = None) -> None:
    """See that all processes have the same problem, and let them pass it in batches of one size with as many threads.

    Args:
        problem: as this process has it; its ``batch_size`` and ``memory_budget`` become the smallest of all.
        engine: that of the run; one process agrees with itself.
        asked: what is asked of it, by what users call that.

    Raises:
        GenboundError: they have different devices, versions, weights, samples, or networks that answer differently, or
            are asked for different things.
    """
    if engine.ranks == 1:
        return
    if len(problem.devices) > 1:
        _refuse_shared(engine.gather((socket.gethostname(), os.environ.get(VISIBLE, ""))))
    torch.set_num_threads(engine.settle(torch.get_num_threads))
    if isinstance(problem, Problem):
        sizes = engine.gather((problem.batch_size, problem.memory_budget))
        problem.batch_size, problem.memory_budget = engine.settle(lambda: [min(of) for of in zip(*sizes, strict=True)])
    facts = engine.together(lambda: {**(asked or {}), **_facts(problem)})
    answers, seen = engine.together(problem.answers), engine.together(lambda: _held_out(problem))
    everywhere = engine.gather((facts, answers, seen))
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
    others = repr([len(data or ()) for data in (problem.test_data, getattr(problem, "unlabelled", None))])
    prior = getattr(problem, "prior", None)
    return {
        "kinds of device": f"{kinds_of(problem.devices)}, {platform.machine()}",
        "versions": f"genbound {__version__}, torch {torch.__version__}, numpy {np.__version__}",
        "weights, layers or code": weights_digest(problem),
        "samples": hashlib.sha256(samples.encode()).hexdigest(),
        "numbers of held-out and unlabelled samples": others,
        "priors": "none" if prior is None else prior.digest(),
        "ranges of the loss": str(getattr(problem, "loss_range_spec", None)),
    }


def _held_out(problem: BaseProblem) -> dict[str, np.ndarray]:
    """Some numbers of a few held-out samples, and their labels."""
    data = problem.test_data
    if data is None:
        return {}
    found: list[np.ndarray] = []
    for place in sorted({round(p) for p in np.linspace(0, len(data) - 1, ASKED)}):
        batch = data.batch([place])
        for tensor in (*(tensor for _, tensor in leaves(batch.inputs)), batch.targets):
            flat = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
            flat = flat.flatten().double()
            found.append(np.append(flat[:SHOWN].numpy(), float(flat.norm())))
    return {"held_out": np.concatenate(found)}


def _refuse_unlike(
    everywhere: Sequence[tuple[Mapping[str, str], Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
    dtype: torch.dtype,
) -> None:
    first, first_answers, first_seen = everywhere[0]
    for rank, (facts, answers, seen) in enumerate(everywhere):
        for what, value in facts.items():
            if value != first[what]:
                raise GenboundError(
                    f"ranks 0 and {rank} have different {what} ({first[what][:40]} and {value[:40]}): start all of "
                    "them alike, or each as a run of its own (--engine local)"
                )
        if not agree(first_answers, answers, dtype):
            raise GenboundError(
                f"the networks of ranks 0 and {rank} answer differently to the same samples: see that both read the "
                "same files"
            )
        if not agree(first_seen, seen, torch.float32):
            raise GenboundError(
                f"ranks 0 and {rank} have different held-out samples: see that both read the same files, in one order"
            )
