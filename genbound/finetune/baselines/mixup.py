r"""Mixup: train on convex combinations of pairs of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genbound.data.sample_parts import map_tensors
from genbound.errors import GenboundError


@dataclass(frozen=True)
class Mix:
    """How the samples of a batch are mixed.

    Attributes:
        share: lambda.
        order: ``[N]``, the other sample of each.
    """

    share: float
    order: Tensor


def draw_mix(count: int, alpha: float) -> Mix:
    r"""One :math:`\lambda\sim\mathrm{Beta}(\alpha, \alpha)` for a batch, and another sample for each.

    Args:
        count: samples in the batch.
        alpha: positive.
    """
    concentration = torch.tensor(float(alpha))
    share = float(torch.distributions.Beta(concentration, concentration).sample())
    return Mix(share, torch.randperm(count))


def mix(model: nn.Module, inputs: Any, labels: Tensor, drawn: Mix) -> tuple[Any, Tensor]:
    r"""Mix every sample of a batch with another one: :math:`\lambda x + (1-\lambda)x'`.

    Token numbers cannot be mixed, their embeddings can: a transformers model is then called with
    ``inputs_embeds``, attending to the longer of both texts.

    Args:
        model: the network, asked for its embeddings.
        inputs: of a batch, tensors ``[N, ...]``.
        labels: ``[N, ...]``.
        drawn: see :func:`draw_mix`.

    Returns:
        The mixed inputs and the other samples' labels ``[N, ...]``; the loss is mixed in the same proportion.

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
        Guo, Mao & Zhang, "Augmenting Data with Mixup for Sentence Classification: An Empirical Study", 2019.
    """
    share, order = drawn.share, drawn.order.to(labels.device)
    if isinstance(inputs, dict) and "input_ids" in inputs:
        network: Any = getattr(model, "module", model)
        if not hasattr(network, "get_input_embeddings"):
            raise GenboundError("--mixup cannot mix token numbers, and the model does not say where its embeddings are")
        embedded = network.get_input_embeddings()(inputs["input_ids"])
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        if "attention_mask" in rest:
            rest["attention_mask"] = torch.maximum(rest["attention_mask"], rest["attention_mask"][order])
        return {**rest, "inputs_embeds": share * embedded + (1 - share) * embedded[order]}, labels[order]

    def mixed(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            raise GenboundError(f"--mixup needs inputs that are floating-point numbers, not {value.dtype}")
        return share * value + (1 - share) * value[order]

    return map_tensors(inputs, mixed), labels[order]
