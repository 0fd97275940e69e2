"""Problems that the tests of several quantities share."""

import torch
from cases import D
from torch import nn

from genbound.network.problem import Problem

# One of each kind; the curvature products of all cases are tested in test_curvature.py.
CHOSEN = (
    "mlp_gelu", "conv_silu", "encoder_tied", "time_first", "twice", "siamese", "gpt_conv1d", "tokens", "weight_norm",
    "lstm", "squared_error", "multi_label", "bounded", "clipped", "custom_loss", "unused", "conv_relu", "embedding",
)  # fmt: skip


def linear(weight, x, y, init=0.0, **arguments):
    weight = torch.as_tensor(weight, dtype=D)
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(D)
    with torch.no_grad():
        model.weight.copy_(weight)
    init = {"weight": torch.full_like(weight, init)}
    return Problem(model, init, (torch.as_tensor(x, dtype=D), torch.as_tensor(y)), dtype=D, **arguments)
