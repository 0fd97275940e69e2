"""How much memory a pass takes, and the largest batch that a budget holds."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genbound.data.sample_parts import stored_parts
from genbound.errors import GenboundError
from genbound.network import displacement
from genbound.network.derivative_trial import is_large
from genbound.network.tape import Tape
from genbound.network.weights_by_need import WeightsByNeed

if TYPE_CHECKING:
    from genbound.network.network import Network
    from genbound.network.weights import BaseProblem

# A double backward pass keeps the forward graph, the graph of its gradients, a direction and a product for every layer,
# and what it is computing; a trace's second product comes beside what is kept of the first: 4.6 times what autograd
# saves of the forward pass. On BERT-base the process grows by 6.1 to 6.5 times what autograd saves, at 128 and at 512
# tokens, for the C library does not reuse all that is freed.
GRAPHS = 7
VECTORS = 2**30  # bytes of the vectors that a recursion keeps, a quarter of the budget at most


ByDevice = Mapping[torch.device, int]  # bytes


def weight_bytes(network: Network) -> int:
    """What the weights take beside a pass, on all devices together, in bytes (:func:`weights_on`)."""
    return sum(weights_on(network).values())


def weights_on(network: Network) -> dict[torch.device, int]:
    """What the weights take beside a pass on each device, in bytes.

    Both sets of them, where they share memory once; the displacements, where they are kept; and what a pass has of
    their size: gradients, or perturbed weights.
    """
    initial = network.init.stored if isinstance(network.init, WeightsByNeed) else network.init
    held: dict[int, tuple[torch.device, int]] = {}
    for name, tensor in (*network.params.items(), *initial.items()):
        for part in stored_parts(tensor):
            storage = part.untyped_storage()
            held[storage.data_ptr()] = network.placement.of(name), storage.nbytes()
    copies = 2 if _copy_bytes(network) <= displacement.KEPT else 1
    found = dict.fromkeys(network.placement.devices, 0)
    for device, size in held.values():
        found[device] += size
    for name, p in network.params.items():
        found[network.placement.of(name)] += copies * p.numel() * p.element_size()
    return found


def peak_bytes(network: Network, positions: Sequence[int], samples_first: Mapping[str, bool]) -> int:
    """What a measurement takes at its peak: the weights, and a double backward pass or noise on all weights, in bytes.

    The arguments and the cost are those of :func:`graph_bytes`.
    """
    return weight_bytes(network) + max(_copy_bytes(network), graph_bytes(network, positions, samples_first))


def _copy_bytes(network: Network) -> int:
    return sum(p.numel() * p.element_size() for p in network.params.values())


def graph_bytes(network: Network, positions: Sequence[int], samples_first: Mapping[str, bool]) -> int:
    """What a double backward pass takes: :data:`GRAPHS` times :func:`saved_bytes`.

    The arguments and the cost are those of :func:`saved_bytes`.
    """
    return GRAPHS * saved_bytes(network, positions, samples_first)


def saved_bytes(network: Network, positions: Sequence[int], samples_first: Mapping[str, bool]) -> int:
    """The tensors that autograd saves of a forward pass, on all devices together, in bytes (:func:`saved_on`)."""
    return sum(saved_on(network, positions, samples_first).values())


def saved_on(network: Network, positions: Sequence[int], samples_first: Mapping[str, bool]) -> dict[torch.device, int]:
    """The tensors that autograd saves of a forward pass on each device, without the weights.

    Args:
        network: what is run.
        positions: the samples of the pass.
        samples_first: of the layers whose derivatives are taken (see :class:`~genbound.network.tape.Tape`).

    Returns:
        Bytes.

    Cost: a forward pass.
    """
    kept: dict[int, tuple[torch.device, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        for part in stored_parts(tensor):
            storage = part.untyped_storage()
            kept[storage.data_ptr()] = part.device, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tape = Tape(network, positions, samples_first)
    for p in [*network.params.values(), *network.buffers.values(), *tape.weights.values()]:
        for part in stored_parts(p):
            kept.pop(part.untyped_storage().data_ptr(), None)
    found: dict[torch.device, int] = {}
    for device, size in kept.values():
        found[device] = found.get(device, 0) + size
    return found


def machine_budget(device: torch.device) -> int:
    """Half of what the machine (the accelerator) has, in bytes: not of what is free, so that a run can be repeated."""
    if device.type in ("cuda", "xpu"):
        return int(getattr(torch, device.type).get_device_properties(device).total_memory) // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def budget_of(device: torch.device, asked: int | None) -> int:
    """What passes and weights may take, in bytes: what was asked for, or half of what the machine has.

    Raises:
        GenboundError: it is not positive.
    """
    if asked is not None and asked <= 0:
        raise GenboundError(f"a memory budget of {asked / 2**30:g} GiB holds nothing: it must be positive")
    return machine_budget(device) if asked is None else asked


def vector_room(budget: int) -> int:
    """Bytes for the vectors of the recursions that run side by side, out of a memory budget."""
    return min(VECTORS, budget // 4)


def largest_batch(network: Network, samples_first: Mapping[str, bool], budgets: ByDevice) -> int:
    """The network's batch size, or as many of the longest samples as the budgets hold beside the weights; 1 at least.

    Args:
        network: what is run; its batch size is not exceeded.
        samples_first: of the layers whose derivatives are taken (see :class:`~genbound.network.tape.Tape`).
        budgets: of each device, in bytes.

    Cost: a forward pass of one sample.
    """
    saved = saved_on(network, [network.num_samples - 1], samples_first)  # in order of length
    return most_held(network, budgets, {device: GRAPHS * size for device, size in saved.items()})


def most_held(network: Network, budgets: ByDevice, each: ByDevice) -> int:
    """The network's batch size, or as many of so many bytes each as every device holds beside its weights.

    Args:
        network: what is run.
        budgets: of each device, in bytes.
        each: what a sample takes there.
    """
    held = weights_on(network)
    return min(
        most_in(room - held[device], each.get(device, 0), network.batch_size) for device, room in budgets.items()
    )


def most_in(room: int, each: int, wanted: int) -> int:
    """How many of so many bytes each have room, up to the wanted number; 1 at least."""
    return max(1, min(wanted, room // max(each, 1)))


def give_back(network: Network | BaseProblem) -> None:
    """Let the system have what the passes of a large network have freed, where the C library is glibc.

    glibc keeps the memory of tensors up to 32 MiB for later ones, which seldom have the same sizes: after the checks of
    a ViT of five blocks that is 1 GiB beside weights of 0.13.

    Cost: a tenth of a second where there is much to give.
    """
    if not is_large(network) or network.device.type != "cpu" or not sys.platform.startswith("linux"):
        return
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
