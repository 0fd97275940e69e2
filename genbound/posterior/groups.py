"""The coordinates that training changed: each is noisy in the posterior, the others are constants.

A coordinate that moved and is in no group would be a choice that the training sample made and that nobody paid for. So
a group is every parameter, of any shape, and every floating-point buffer that differs from its value at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from genbound.network.problem import Problem


@dataclass(frozen=True)
class Group:
    """One tensor that moved.

    Attributes:
        name: of the parameter or buffer.
        tuned: its fine-tuned value, ``[*shape]``.
        square: squared length of its displacement from the prior's centre, the value at the start.
        is_buffer: running statistics and the like.
    """

    name: str
    tuned: Tensor
    square: float
    is_buffer: bool = False

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        return self.tuned.numel()


def changed_groups(problem: Problem) -> list[Group]:
    """Every tensor that differs from its start, whole."""
    found = []
    for is_buffer, (now, before) in enumerate(
        ((problem.params, problem.init), (problem.buffers, problem.init_buffers))
    ):
        for name, tensor in now.items():
            if tensor.is_floating_point() and not torch.equal(tensor, before[name]):
                square = float((tensor.double() - before[name].double()).square().sum())
                found.append(Group(name, tensor, square, bool(is_buffer)))
    return found


def why_no_posterior(problem: Problem) -> str | None:
    """Why no certificate holds for the problem, ``None`` where one may.

    The samples must be the whole training set, and the start of everything that may have moved must be known.
    """
    if len(problem.data) != problem.num_data:
        return (
            f"a certificate needs the whole training set: {len(problem.data)} samples are given and n is "
            f"{problem.num_data}"
        )
    if problem.num_data < 8:
        return f"the bound needs at least 8 training samples, there are {problem.num_data}"
    stored = problem.model.state_dict().keys()
    unknown = [
        name
        for name in sorted(problem.borrowed_buffers)
        if name in stored and problem.buffers[name].is_floating_point()
    ]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return f"the start of buffer {unknown[0]}{more} is not known: a prior may not be centred at tuned values"
    if not changed_groups(problem):
        return "no weight differs from its start: nothing was fine-tuned"
    return None
