"""A forward pass as the operations in it: nothing fused, nothing compiled, nothing left for the backward pass."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Run attention, encoder layers, checkpointed and compiled parts as the operations in them, in every mode.

    Torch has fused forms that it takes without gradients only. They have no second derivative and hide the products
    with weights. The encoder layer's sets padded positions to zero, which the plain one does not: another network.
    Embeddings have the derivative of what they compute, not the one that training is given in its place.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _without_recomputation(), _without_compilation(), _true_derivatives():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextlib.contextmanager
def _without_recomputation() -> Iterator[None]:
    """Let ``torch.utils.checkpoint`` keep what it would compute again.

    A pass is run at other weights than the module's own. Computing a part of it again later would take the module's,
    and in the re-entrant mode no derivative but that of ``backward()`` exists. What a pass keeps counts in the memory
    that decides the batch size.
    """
    apply = checkpoint.CheckpointFunction.apply
    # From torch 2.14 on, the function of this name is kept for others, and torch itself calls the one named *_impl.
    generators = {n: f for n, f in vars(checkpoint).items() if n.startswith("_checkpoint_without_reentrant_generator")}
    checkpoint.CheckpointFunction.apply = staticmethod(_called)  # type: ignore[method-assign]
    vars(checkpoint).update(dict.fromkeys(generators, _nothing_kept))
    try:
        yield
    finally:
        checkpoint.CheckpointFunction.apply = apply  # type: ignore[method-assign]
        vars(checkpoint).update(generators)


def _called(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    return function(*args)


def _nothing_kept(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _true_derivatives() -> Iterator[None]:
    """Let embeddings be differentiated as what they are.

    ``padding_idx`` holds a row's gradient at zero and ``scale_grad_by_freq`` divides each by how often its row is met.
    The values are the same without.
    """
    embedding = F.embedding
    F.embedding = functools.partial(_plain_embedding, embedding)
    try:
        yield
    finally:
        F.embedding = embedding


def _plain_embedding(
    embedding: Callable[..., Tensor],
    input: Tensor,  # by torch's own names: callers may use them
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    return embedding(input, weight, max_norm=max_norm, norm_type=norm_type)


def _without_compilation() -> contextlib.AbstractContextManager:
    """Run what ``torch.compile`` has wrapped as it was written: compiled code has no second derivative."""
    if "torch._dynamo" not in sys.modules:  # then nothing was compiled
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
