"""Whether this process was started as one of several, and by what: torchrun, accelerate launch or Slurm."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from genbound.errors import GenboundError

# Of a Slurm step, whose number is added: the steps of one machine must not meet on one port.
FIRST_PORT, NUM_PORTS = 20000, 20000


@dataclass(frozen=True)
class Launch:
    """One of several processes that were started together.

    Attributes:
        rank: from 0; that one leads.
        ranks: how many there are.
        local_rank: among those of this machine.
        environment: variables that torch.distributed finds its companions by.
    """

    rank: int
    ranks: int
    local_rank: int
    environment: Mapping[str, str]

    def device(self, wanted: str) -> str:
        """The device of this process: its own accelerator of this machine where any will do (``cuda``)."""
        if wanted != "cuda":
            return wanted
        import torch

        # Slurm may show each task its own accelerator alone.
        return f"cuda:{self.local_rank % max(1, torch.cuda.device_count())}"


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """How this process was started; ``None`` if it is alone.

    Args:
        environment: variables; ``None`` means those of the process.
    """
    env = os.environ if environment is None else environment
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        return _launch(env, "RANK", "WORLD_SIZE", "LOCAL_RANK", {})
    # A batch script has the variables of its job, too; only a task that srun started has those of a step.
    if {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_ID", "SLURM_JOB_ID"} <= env.keys():
        step = int(env["SLURM_JOB_ID"]) * 31 + int(env["SLURM_STEP_ID"])
        meeting = {
            "MASTER_ADDR": env.get("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"])),
            "MASTER_PORT": env.get("MASTER_PORT", str(FIRST_PORT + step % NUM_PORTS)),
        }
        return _launch(env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", meeting)
    return None


def _launch(env: Mapping[str, str], rank: str, ranks: str, local_rank: str, more: Mapping[str, str]) -> Launch | None:
    try:
        found = int(env[rank]), int(env[ranks]), int(env.get(local_rank, env[rank]))
    except ValueError as error:
        raise GenboundError(
            f"{rank}, {ranks} and {local_rank} must be whole numbers ({error}): see what has set them"
        ) from error
    names = {"RANK": found[0], "WORLD_SIZE": found[1], "LOCAL_RANK": found[2]}
    return Launch(*found, {**{name: str(number) for name, number in names.items()}, **more}) if found[1] > 1 else None


def first_host(nodes: str) -> str:
    """The first host of a list of Slurm: ``gpu[03-05,09],cpu1`` gives ``gpu03``."""
    head = re.match(r"[^,\[]+(\[[^\]]*\])?[^,\[]*", nodes)
    if head is None:
        raise GenboundError(f"the list of nodes {nodes!r} names none: set MASTER_ADDR to the first one's name")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", head[0])
