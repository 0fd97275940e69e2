"""What ``flatness`` and ``sharpness`` share.

It is the error at perturbed weights, and the groups of samples that it is taken on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genbound.network.problem import Problem

GROUP = 64  # samples that share a perturbation
EARLY = 4  # parts of the samples after which a pass may end early


def sample_groups(problem: Problem, size: int = GROUP) -> list[range]:
    """The samples dealt out in turn, so that neither size nor order (by class, say) tells the groups apart."""
    count = math.ceil(problem.num_samples / size)
    return [range(start, problem.num_samples, count) for start in range(count)]


def perturbed_names(problem: Problem) -> list[str]:
    """The parameters that are perturbed: all of them, with biases and the affine parameters of normalisations."""
    return [name for name, p in problem.params.items() if p.is_floating_point()]


def flattened(problem: Problem, weights: Mapping[str, Tensor]) -> Tensor:
    """These parameters in double precision, one after another ``[omega]``, in the unit of the weights."""
    return torch.cat([weights[name].flatten().double().to(problem.device) for name in perturbed_names(problem)])


def num_wrong(problem: Problem, outputs: Tensor, targets: Tensor) -> float:
    """Sum of the 0-1 errors in a batch.

    Outputs that overflow are wrong: a perturbation can make them do that.

    Args:
        problem: whose loss counts the errors.
        outputs: of the network ``[N, ...]``.
        targets: ``[N, ...]``.
    """
    finite, error = torch.isfinite(outputs).flatten(1).all(1), problem.loss.error
    if error is None:
        raise TypeError("the loss counts no errors: see check_loss")
    errors = error(outputs.nan_to_num(), targets).double()
    return float(torch.where(finite, errors, torch.ones_like(errors)).sum())


def mean_error(problem: Problem, params: Mapping[str, Tensor], positions: Sequence[int]) -> float:
    """Mean 0-1 error of the samples at the given weights, between 0 and 1.

    Cost: a forward pass of the samples.
    """
    return error_up_to(problem, params, positions, math.inf)[0]


def error_up_to(
    problem: Problem, params: Mapping[str, Tensor], positions: Sequence[int], most: float
) -> tuple[float, bool]:
    """The mean error, as far as it need be known, and whether it is that of all samples.

    As soon as it is sure to be more than ``most``, what it is at least is returned.

    Cost: a forward pass of the samples, or of a part of them.
    """
    wrong, passed = 0.0, 0
    part = problem.batch_size if most == math.inf else math.ceil(len(positions) / EARLY)
    for run in problem.batches(positions, min(problem.batch_size, part)):
        batch = problem.batch(run)
        with torch.no_grad():
            outputs = problem.forward(params, batch.inputs)
        wrong, passed = wrong + num_wrong(problem, outputs, batch.targets), passed + len(run)
        if wrong > most * len(positions):
            break
    return wrong / len(positions), passed == len(positions)


def mean_error_and_gradient(
    problem: Problem, params: Mapping[str, Tensor], positions: Sequence[int], most: float = math.inf
) -> tuple[float, bool, dict[str, Tensor]]:
    """The mean error up to ``most`` and whether it is whole, and the gradient of the samples' summed loss.

    The gradient is in the perturbed parameters, of their shapes, and zero where it is not a number. It is that of all
    samples if the error is not more than ``most``.
    """
    leaves = {name: params[name].detach().requires_grad_() for name in perturbed_names(problem)}
    total = {name: torch.zeros_like(p) for name, p in leaves.items()}
    wrong, passed = 0.0, 0
    for run in problem.batches(positions):
        batch = problem.batch(run)
        with torch.enable_grad():
            outputs = problem.forward({**params, **leaves}, batch.inputs)
            loss = problem.loss.per_sample(outputs, batch.targets).sum()
        wrong, passed = wrong + num_wrong(problem, outputs.detach(), batch.targets), passed + len(run)
        if wrong > most * len(positions):
            break
        if loss.requires_grad:
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    total[name] += gradient.nan_to_num()
    return wrong / len(positions), passed == len(positions), total


def check_loss(what: str, problem: Problem) -> str | None:
    """Why the quantity does not exist for the problem, if it does not."""
    if problem.loss.error is None:
        return f"{what} is searched for a rise of the 0-1 error, which {problem.loss.name} does not have"
    return None
