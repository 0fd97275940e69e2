"""The coordinates that training changed: each is noisy in the posterior, the others are constants.

A coordinate that moved and is in no group would be a choice that the training sample made and that nobody paid for. So
a group is every parameter, of any shape, and every floating-point buffer that differs from its value at the start.
Numbers of other kinds (whole, logical, complex) have no noise: where they moved there is no certificate.

What an adapter adds to a weight is known as a product of two factors, ``W = init + left right``. Then these are what is
noisy: far fewer coordinates. The prior of each is centred at its value in the adapter that is the prior, and a factor
that is still there is a constant. Without one nothing is known of their start, and both are centred at zero; of all
factors with this product those that are balanced are taken then, which are nearest to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from genbound.network.problem import Problem


SIDES = ("left", "right")
COUNTER = "num_batches_tracked"  # of a batch norm in evaluation mode


@dataclass(frozen=True)
class Group:
    """One tensor that moved.

    Attributes:
        name: of the parameter or buffer.
        tuned: its fine-tuned value, ``[*shape]``.
        square: squared length of its displacement from the prior's centre, the value at the start.
        is_buffer: running statistics and the like.
        weight: the parameter that it is a factor of, empty where it is none.
        factors: of that parameter's displacement, ``left [out, r]`` and ``right [r, in]``, fine-tuned.
        start: of a factor, the prior's centre.
    """

    name: str
    tuned: Tensor
    square: float
    is_buffer: bool = False
    weight: str = ""
    factors: tuple[Tensor, Tensor] | None = None
    start: Tensor | None = None

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        return self.tuned.numel()


def centre(problem: Problem, name: str) -> Tensor:
    """Of the prior, for a parameter or buffer: the start, or the value in the checkpoint that ``--prior`` names."""
    if problem.prior is not None:
        return problem.prior.params[name] if name in problem.params else problem.prior.buffers[name]
    return problem.init[name] if name in problem.params else problem.init_buffers[name]


def choice_nats(problem: Problem) -> float:
    """What it costs that the prior was chosen from several after the samples had been seen, in nats."""
    return 0.0 if problem.prior is None else math.log(problem.prior.choices)


def unseen(problem: Problem) -> list[int]:
    """Places in the data of the training samples that the prior's centre did not see."""
    seen = frozenset() if problem.prior is None else problem.prior.samples or frozenset()
    return [i for i in range(len(problem.data)) if i not in seen]


def changed_groups(problem: Problem) -> list[Group]:
    """Every tensor that differs from the prior's centre, whole."""
    found = []
    for is_buffer, tensors in enumerate((problem.params, problem.buffers)):
        for name, tensor in tensors.items():
            before = centre(problem, name)
            if tensor.is_floating_point() and not torch.equal(tensor, before):
                square = float((tensor.double() - before.double()).square().sum())
                found.append(Group(name, tensor, square, bool(is_buffer)))
    return found


def unpaid(problem: Problem) -> list[str]:
    """Names of other tensors that moved, or of whose start nothing is known; what counts batches is read by no one."""
    stored = problem.model.state_dict().keys()  # other buffers are made by the code: constants
    return [
        name
        for name, tensor in (*problem.params.items(), *problem.buffers.items())
        if not tensor.is_floating_point() and name in stored and not name.endswith(COUNTER)
        if name in problem.borrowed_buffers or not torch.equal(tensor, centre(problem, name).to(tensor))
    ]


def factor_groups(problem: Problem, groups: Sequence[Group]) -> list[Group]:
    """The same with those that an adapter moved as their two factors, where the prior has them too."""
    known, found = problem.displacement.factors, []
    before = None if problem.prior is None else problem.prior.factors
    for group in groups:
        if group.name not in known or before is not None and group.name not in before:
            found.append(group)
            continue
        factors = known[group.name] if before is not None else _balanced(*known[group.name])
        centres = [torch.zeros_like(f) for f in factors] if before is None else before[group.name]
        for side, factor, start in zip(SIDES, factors, centres, strict=True):
            if not torch.equal(factor, start):
                square = float((factor.double() - start.double()).square().sum())
                name, both = f"{group.name}.{side}", (factors[0], factors[1])
                found.append(Group(name, factor, square, weight=group.name, factors=both, start=start))
    return found


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors ``[out, r]`` and ``[r, in]`` of the same product whose squared lengths add up to least."""
    q, a = torch.linalg.qr(left.double())
    p, b = torch.linalg.qr(right.double().T)
    u, values, v = torch.linalg.svd(a @ b.T)
    root = values.sqrt()
    return (q @ u * root).to(left), ((p @ v.T * root).T).to(right)


def why_no_posterior(problem: Problem) -> str | None:
    """Why no certificate holds for the problem, ``None`` where one may.

    The samples must be the whole training set, and the start of everything that may have moved must be known.
    """
    if len(problem.data) != problem.num_data:
        return (
            f"a certificate needs the whole training set: {len(problem.data)} samples are given and n is "
            f"{problem.num_data}"
        )
    if problem.prior is not None and problem.prior.samples is None:
        return "the prior may have seen the samples: say which with --prior-samples FILE"
    left = len(unseen(problem))
    if left < 8:
        seen = "" if problem.prior is None else " that the prior did not see"
        return f"the bound needs at least 8 training samples{seen}, there are {left}"
    stored = problem.model.state_dict().keys()
    unknown = [
        name
        for name in sorted(problem.borrowed_buffers)
        if name in stored and problem.buffers[name].is_floating_point()
    ]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return f"the start of buffer {unknown[0]}{more} is not known: a prior may not be centred at tuned values"
    moved = unpaid(problem)
    if moved:
        more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
        return (
            f"{moved[0]}{more} moved or has an unknown start, and is no floating-point tensor: no prior pays for "
            "what it may have learned"
        )
    if not changed_groups(problem):
        if problem.prior is not None:
            return "no weight differs from the prior: certify another one, or bound this one on the unseen samples"
        return "no weight differs from its start: nothing was fine-tuned"
    return None
