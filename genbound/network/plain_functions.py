r"""Functions of torch without a second derivative, computed by their formulas.

Torch has fused forms of some functions whose own derivative cannot be differentiated again: bags of embeddings, some
losses, attention that is pinned to a kernel. The fused weight normalisation holds the norm constant in its second
derivative. :class:`PlainFunctions` puts the formula in the place of each, with the same values, and keeps in mind
whether it had to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

UNREACHED = -1e30  # log-probability of a state that cannot be reached; -inf has no derivative


class PlainFunctions(TorchFunctionMode):
    """Computes what is in :data:`FORMULAS` by its formula.

    Attributes:
        replaced: a formula took a function's place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaced = False

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is F.scaled_dot_product_attention:
            self.replaced |= _pinned()
            with sdpa_kernel(SDPBackend.MATH):
                return function(*args, **(kwargs or {}))
        formula = FORMULAS.get(function)
        if formula is None:
            return function(*args, **(kwargs or {}))
        self.replaced = True
        return formula(*args, **(kwargs or {}))


def _pinned() -> bool:
    """Attention may run in a fused kernel here, although the pass is run in its plain form."""
    kernels = torch.backends.cuda
    return kernels.flash_sdp_enabled() or kernels.mem_efficient_sdp_enabled() or kernels.cudnn_sdp_enabled()


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


# -- bags of embeddings -----------------------------------------------------------------------------------------------


def _embedding_bag(
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Rows of the weight ``[rows, width]``, their sum, mean or maximum in each bag: ``[bags, width]``.

    ``indices`` are ``[bags, length]``, or ``[total]`` with the bags' beginnings in ``offsets``. Bags of different
    lengths are filled up to the longest, so that one has as many rows as another.
    """
    places, there = _bags(indices, offsets, include_last_offset)
    flat = indices.reshape(-1)
    if padding_idx is not None:
        there = there & (flat[places] != padding_idx % len(weight))
    rows = F.embedding(torch.where(there, flat[places], 0), weight, max_norm=max_norm, norm_type=norm_type)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1)[places].unsqueeze(-1)
    counts, absent = there.sum(1, keepdim=True), ~there.unsqueeze(-1)
    if mode == "max":
        return rows.masked_fill(absent, -torch.inf).max(1).values.masked_fill(counts == 0, 0.0)
    total = rows.masked_fill(absent, 0.0).sum(1)
    return total / counts.clamp(min=1) if mode == "mean" else total


def _bags(indices: Tensor, offsets: Tensor | None, ends_given: bool) -> tuple[Tensor, Tensor]:
    """For each bag the places of its entries in the flattened indices ``[bags, longest]``, and which are there."""
    if offsets is None:
        places = torch.arange(indices.numel(), device=indices.device).view_as(indices)
        return places, torch.ones_like(places, dtype=torch.bool)
    starts = offsets[:-1] if ends_given else offsets
    ends = offsets[1:] if ends_given else torch.cat([offsets[1:], offsets.new_tensor([indices.numel()])])
    longest = max(1, int((ends - starts).max()))
    places = starts.unsqueeze(1) + torch.arange(longest, device=indices.device)
    there = places < ends.unsqueeze(1)
    return torch.where(there, places, 0), there


# -- losses -----------------------------------------------------------------------------------------------------------


def _multi_margin(
    scores: Tensor,
    target: Tensor,
    p: float = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r""":math:`\frac1K \sum_{j \ne y} w_y \max(0, m - x_y + x_j)^p` of ``scores [N, K]``."""
    rows, labels = (scores.unsqueeze(0), target.reshape(1)) if scores.dim() == 1 else (scores, target)
    short = (margin - rows.gather(1, labels.unsqueeze(1)) + rows).clamp(min=0) ** p
    if weight is not None:
        short = short * weight[labels].unsqueeze(1)
    others = F.one_hot(labels, rows.shape[1]) == 0
    losses = torch.where(others, short, 0.0).mean(1)
    return _reduced(losses.squeeze(0) if scores.dim() == 1 else losses, reduction, size_average, reduce)


def _multilabel_margin(
    scores: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r""":math:`\frac1K \sum_{j \in Y,\, i \notin Y} \max(0, 1 - x_j + x_i)`; Y are the classes before the first -1."""
    rows, classes = (scores.unsqueeze(0), target.unsqueeze(0)) if scores.dim() == 1 else (scores, target)
    named = (classes >= 0).long().cumprod(1)
    labels = classes.clamp(min=0)
    counted = torch.zeros_like(labels).scatter_add(1, labels, named)
    pairs = (1 - rows.gather(1, labels).unsqueeze(2) + rows.unsqueeze(1)).clamp(min=0)
    wanted = (named.unsqueeze(2) > 0) & (counted.unsqueeze(1) == 0)
    losses = torch.where(wanted, pairs, 0.0).flatten(1).sum(1) / rows.shape[1]
    return _reduced(losses.squeeze(0) if scores.dim() == 1 else losses, reduction, size_average, reduce)


def _ctc(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Minus the log-probability of the labels under all alignments with ``log_probs [T, N, K]``.

    The forward recursion over the labels with a blank between any two of them (Graves et al. 2006, section 4.1).
    """
    alone = log_probs.dim() == 2
    log_probs = log_probs.unsqueeze(1) if alone else log_probs
    steps, num, _ = log_probs.shape
    times, sizes = (
        torch.as_tensor(n, device=log_probs.device).reshape(-1).long() for n in (input_lengths, target_lengths)
    )
    labels = _labels_by_row(targets.to(log_probs.device).long(), sizes, num)
    states = torch.full((num, 2 * labels.shape[1] + 1), blank, dtype=torch.long, device=log_probs.device)
    states[:, 1::2] = labels
    skips = torch.zeros_like(states, dtype=torch.bool)  # a blank between two different labels may be left out
    skips[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    emitted = log_probs.gather(2, states.expand(steps, -1, -1))
    first = torch.arange(states.shape[1], device=log_probs.device) < torch.where(sizes > 0, 2, 1).unsqueeze(1)
    alpha = torch.where(first, emitted[0], UNREACHED)
    for t in range(1, steps):
        before, two_before = (F.pad(alpha, (k, 0), value=UNREACHED)[:, : alpha.shape[1]] for k in (1, 2))
        ways = torch.stack([alpha, before, torch.where(skips, two_before, UNREACHED)])
        alpha = torch.where((t < times).unsqueeze(1), ways.logsumexp(0) + emitted[t], alpha)
    ends = torch.stack([2 * sizes, (2 * sizes - 1).clamp(min=0)], 1)
    last = torch.where(torch.stack([sizes >= 0, sizes > 0], 1), alpha.gather(1, ends), UNREACHED)
    losses = -last.logsumexp(1)
    losses = losses.masked_fill(losses > -UNREACHED / 2, 0.0 if zero_infinity else torch.inf)
    if reduction == "mean":
        losses = losses / sizes.clamp(min=1)
    return _reduced(losses.squeeze(0) if alone else losses, reduction)


def _reduced(losses: Tensor, reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> Tensor:
    """The losses as they are, their sum or their mean; ``size_average`` and ``reduce`` are torch's older words."""
    if reduce is False or reduction == "none":
        return losses
    return losses.sum() if size_average is False or reduction == "sum" else losses.mean()


def _labels_by_row(targets: Tensor, sizes: Tensor, num: int) -> Tensor:
    """The labels ``[N, longest]``, filled up with zeros, also where they are given one behind the other."""
    if targets.dim() == 1:
        parts = targets.split(sizes.tolist()) if num > 1 else (targets,)
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    return targets.clamp(min=0)  # rows are often filled up with negative numbers


FORMULAS: dict[Callable, Callable] = {
    torch._weight_norm: _weight_norm,
    F.embedding_bag: _embedding_bag,
    F.multi_margin_loss: _multi_margin,
    F.multilabel_margin_loss: _multilabel_margin,
    F.ctc_loss: _ctc,
}
