"""What Fisher's information is of the Gauss-Newton part, and for which losses it exists."""

from __future__ import annotations

import torch
from torch import Tensor

from genbound.data.sample_parts import IGNORED
from genbound.errors import GenboundError
from genbound.network.loss_functions import CROSS_ENTROPY, MULTI_LABEL, SQUARED_ERROR, Loss


def check_likelihood(loss: Loss) -> None:
    """Refuse a loss that is no negative log-likelihood: the network's predictions are no distribution of its labels."""
    if loss not in (CROSS_ENTROPY, SQUARED_ERROR, MULTI_LABEL):
        raise GenboundError(
            f"the loss {loss.name} is no negative log-likelihood that genbound knows, so it has no Fisher information: "
            "use the curvature ggn, or cross_entropy, squared_error or multi_label as they are"
        )


def fisher_share(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Fisher's information of every sample, as a share of its Gauss-Newton part: one over its number of labels.

    Args:
        loss: one that :func:`check_likelihood` lets pass.
        outputs: ``[N, ...]``.
        targets: ``[N, ...]``.

    Returns:
        ``[N]``, without unit, of the outputs' type.
    """
    labels = torch.ones(len(outputs), dtype=outputs.dtype, device=outputs.device)
    if loss == MULTI_LABEL:
        labels = labels * outputs[0].numel()
    elif loss == CROSS_ENTROPY and targets.dim() > 1:
        labels = (targets != IGNORED).flatten(1).sum(1).clamp(min=1).to(outputs.dtype)
    return 1 / labels
