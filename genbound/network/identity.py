"""What a measured number depends on beside its own options and the seed: as a digest, and as answers to be compared.

The digest is of values: weights, samples, and the code that computes, the network's and the loss's own
(:mod:`genbound.network.live_code`) as well as that of genbound and of the libraries. What only says how the work is cut
is no part of it: the size of a batch moves numbers by rounding.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from genbound.network.live_code import code_digest, tensor_digest
from genbound.version import __version__

if TYPE_CHECKING:
    from genbound.network.network import Network
    from genbound.network.problem import Problem
    from genbound.network.weights import BaseProblem

COMPUTING = (
    "curvature",
    "data",
    "estimators",
    "network",
    "posterior",
    "quantities",
    "structure",
)  # wings of the package
ASKED = 4  # samples
SHOWN = 64  # numbers of an output
# How far answers to the same question may lie apart, in the largest of them: of outputs in roundings, of gradients
# relatively, which add up many products in an order that an accelerator may choose.
ROUNDINGS, OF_GRADIENTS, MOST_OF_OUTPUTS = 100, 1e-3, 0.05


def weights_digest(problem: BaseProblem) -> str:
    """SHA-256 of both sets of weights and buffers, of the layers, and of the code that reads them."""
    state = hashlib.sha256(_own_sources().encode())
    for group in (problem.params, problem.buffers, problem.init, problem.init_buffers):
        state.update(_tensors(group))
    factors = problem.displacement.factors
    for side in (0, 1):
        state.update(_tensors({name: pair[side] for name, pair in factors.items()}))
    files = [problem.provenance.get(name, {}).get("sha256") for name in ("checkpoint", "init")]
    facts = (
        files, [layer.name for layer in problem.layers], problem.head, str(problem.dtype), kinds_of(problem.devices),
        torch.get_num_threads(), code_digest(), *_switches(),
    )  # fmt: skip
    state.update(repr(facts).encode())
    return state.hexdigest()


def kind_of(device: torch.device | str) -> str:
    """What computes: equal on all accelerators of one model, whatever their numbers are."""
    kind = torch.device(device).type
    return f"{kind} {torch.cuda.get_device_name(device)}" if kind == "cuda" else kind


def kinds_of(devices: Sequence[torch.device]) -> str:
    """The kinds of several devices, each once."""
    return " and ".join(sorted({kind_of(device) for device in devices}))


def network_digests(problem: Problem) -> dict[bool, str]:
    """SHA-256 of the weights, the samples, the network's code and the loss's; ``True`` counts held-out ones in."""
    held_out = None if problem.test_data is None else problem.test_data.content_digest()
    counted = {**dict(problem.model.named_parameters()), **dict(problem.model.named_buffers())}
    loss = {field.name: getattr(problem.loss, field.name) for field in fields(problem.loss) if field.name != "name"}
    before = weights_digest(problem), problem.data.content_digest()
    behind = (
        list(problem.indices), problem.sample_seed, problem.num_data, problem.other_samples, problem.loss_range_spec,
        problem.output,
        code_digest(problem.model, loss, counted=counted),
        None if problem.prior is None else problem.prior.digest(),
        None if problem.unlabelled is None else problem.unlabelled.content_digest(),
    )  # fmt: skip
    facts = {False: (*before, None, *behind), True: (*before, held_out, *behind)}
    return {test_data: hashlib.sha256(repr(found).encode()).hexdigest() for test_data, found in facts.items()}


def _tensors(group: Mapping[str, Tensor]) -> bytes:
    # One after the other: some weights are made when they are asked for.
    rows = [(name, str((t := group[name]).dtype), tuple(t.shape), tensor_digest(t)) for name in sorted(group)]
    return repr(rows).encode()


def _switches() -> tuple[Any, ...]:
    """What torch has been told about precision."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        str(torch.get_default_dtype()), torch.get_float32_matmul_precision(), cuda.allow_tf32, cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


@functools.cache
def _own_sources() -> str:
    """SHA-256 of the sources of genbound that compute; the version where they are not there to be read."""
    root = Path(__file__).parents[1]
    sources = sorted(path for wing in COMPUTING for path in (root / wing).rglob("*.py"))
    state = hashlib.sha256(b"" if sources else __version__.encode())
    for path in sources:
        state.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return state.hexdigest()


def answers(problem: Problem) -> dict[str, np.ndarray]:
    """What the network says to a few of its samples, each in a pass of its own, so that no batch size shows.

    Returns:
        For the fine-tuned and the pretrained weights: ``outputs`` (some numbers of each, and its norm), ``losses [A]``
        and ``gradients [A, L]``, the norm of the loss's gradient in every layer.

    Cost: eight gradients of a sample.
    """
    places = sorted({round(p) for p in np.linspace(0, problem.num_samples - 1, ASKED)})
    found: dict[str, list[np.ndarray]] = {}
    for which, params, buffers in (
        ("tuned", problem.params, problem.buffers), ("init", problem.init, problem.init_buffers),
    ):  # fmt: skip
        for place in places:
            for key, value in _answer(problem, place, params, buffers).items():
                found.setdefault(f"{which}_{key}", []).append(value)
    return {key: np.concatenate(values) for key, values in found.items()}


def _answer(
    network: Network, place: int, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    batch = network.batch([place])
    leaves = {name: p.detach().requires_grad_() for name, p in params.items() if p.is_floating_point()}
    with torch.enable_grad():
        outputs = network.forward({**params, **leaves}, batch.inputs, buffers)
        losses = network.loss.per_sample(outputs, batch.targets)
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
    flat = outputs.detach().double().flatten().cpu()
    some = flat[np.linspace(0, len(flat) - 1, min(SHOWN, len(flat))).round().astype(int)]
    norms = [0.0 if g is None else float(g.double().norm()) for g in gradients]
    return {
        "outputs": np.append(some.numpy(), float(flat.norm())),
        "losses": losses.detach().double().cpu().numpy(),
        "gradients": np.array(norms),
    }


def agree(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], dtype: torch.dtype) -> bool:
    """Whether two sets of :func:`answers` are those of one network, up to rounding in ``dtype``."""
    of_outputs = min(ROUNDINGS * torch.finfo(dtype).eps, MOST_OF_OUTPUTS)

    def close(key: str) -> bool:
        a, b = one[key], other[key]
        if a.shape != b.shape:
            return False
        allowed = max(of_outputs, OF_GRADIENTS) if key.endswith("gradients") else of_outputs
        size = float(np.abs(np.nan_to_num(a)).max(initial=0.0))
        return bool(np.allclose(a, b, rtol=0.0, atol=allowed * size, equal_nan=True))

    return one.keys() == other.keys() and all(map(close, one))
