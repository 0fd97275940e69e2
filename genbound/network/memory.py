"""How much memory a pass takes, and the largest batch that a budget holds."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from genbound.errors import GenboundError

GRAPHS = 3  # a double backward pass keeps the forward graph, the graph of its gradients and what it is computing
COPIES = 4  # of the weights: their own, the initial ones, the displacements and a perturbed copy


def weight_bytes(problem) -> int:
    return COPIES * sum(p.numel() * p.element_size() for p in problem.params.values())


def graph_bytes(problem, positions: Sequence[int]) -> int:
    """What a double backward pass over these samples keeps: the tensors that autograd saves, three times, without the weights."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tape = problem.tape(positions)
    for p in [*problem.params.values(), *problem.buffers.values(), *tape.weights.values()]:
        kept.pop(p.untyped_storage().data_ptr(), None)
    return GRAPHS * sum(kept.values())


def machine_budget(device: torch.device) -> int:
    """Half of what the machine (the accelerator) has: what it *has*, not what is free, so that a run can be repeated."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def largest_batch(problem, wanted: int, budget: int | None) -> int:
    """The wanted batch size, or as many of the longest samples as the budget holds beside the weights; 1 at least.

    Args:
        problem: with its layers found.
        wanted: not exceeded.
        budget: in bytes; ``None`` means half of the machine's memory.

    Cost: a forward pass of one sample.
    """
    if budget is not None and budget <= 0:
        raise GenboundError(f"a memory budget of {budget / 2**30:g} GiB holds nothing: it must be positive")
    budget = machine_budget(problem.device) if budget is None else budget
    each = graph_bytes(problem, [problem.num_samples - 1])  # in order of length
    return max(1, min(wanted, (budget - weight_bytes(problem)) // max(each, 1)))
