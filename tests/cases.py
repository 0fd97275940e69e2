"""A table of tiny networks (a weight has at most some 200 entries), each with init, data, loss and what is known of it.

A case says by hand which layers there are and which blocks must be claimed positive semidefinite (``psd``). Whatever is
not in ``psd`` must not be claimed. The number of samples is odd, so that the last batch is short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import dense
import torch
from layout_nets import LAYOUTS
from sequence_nets import ENCODER_LAYERS, encoder, gpt_conv1d, lstm_cell, recurrent, tokens
from small_nets import (
    CONV_LAYERS,
    MLP_LAYERS,
    D,
    conv_1d,
    conv_3d,
    conv_net,
    conv_transposed,
    labels,
    mlp,
    sharp,
    with_targets,
)
from torch import nn
from torch.nn import functional as F
from unusual_nets import (
    WeightNormed,
    cosine_loss,
    einsum,
    embedding_named,
    gate,
    left_product,
    scaled_addmm,
    siamese,
    siamese_added,
    standardised,
    twice,
    unused,
    weight_norm,
)

from genbound.network.problem import Problem


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        build: ``() -> (model, inputs, targets)`` with inputs a tensor or a dict of tensors, first axis the samples.
        layers: every layer, in order.
        psd: those whose block is positive semidefinite for every sample, as far as the operations show.
        loss, loss_range: arguments of ``Problem``.
        reference: the same loss of one sample, from :mod:`dense`.
        pattern: ``layers`` argument of ``Problem``.
        single: layers whose samples cannot share a pass.
        twin: the same function for the dense truth, where torch cannot differentiate the model itself twice.
    """

    build: Callable
    layers: tuple[str, ...]
    psd: tuple[str, ...] = ()
    loss: object = "cross_entropy"
    loss_range: str = "observed"
    reference: Callable = dense.cross_entropy
    pattern: str | None = None
    single: tuple[str, ...] = ()
    twin: Callable = lambda model: model

    def parts(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model, inputs, targets = self.build()
            model = model.to(D)
            init = {n: p.detach() - 0.3 * torch.randn(p.shape, dtype=D) for n, p in model.named_parameters()}
        return model, init, inputs, targets

    def problem(self, **arguments) -> Problem:
        model, init, inputs, targets = self.parts()
        data = {"labels": targets, **inputs} if isinstance(inputs, dict) else (inputs, targets)
        chosen = {"loss_range": self.loss_range, "layers": self.pattern, "batch_size": 3, "dtype": D, **arguments}
        return Problem(model, init, data, chosen.pop("loss", self.loss), **chosen)

    def truth(self) -> dense.Truth:
        model, init, inputs, targets = self.parts()
        if isinstance(inputs, dict):
            rows = [{k: v[i] for k, v in inputs.items()} for i in range(len(targets))]
        else:
            rows = list(inputs)
        rows = [_double(row) for row in rows]
        return dense.Truth(self.twin(model), init, rows, [_double(t) for t in targets], self.reference, self.layers)


def _double(value):
    if isinstance(value, dict):
        return {k: _double(v) for k, v in value.items()}
    return value.double() if value.is_floating_point() else value


CASES: dict[str, Case] = {
    "mlp_gelu": Case(mlp(nn.GELU), MLP_LAYERS, psd=("4.weight",)),
    "mlp_relu": Case(mlp(nn.ReLU), MLP_LAYERS, psd=MLP_LAYERS),
    "mlp_piecewise": Case(
        lambda: (
            nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(), nn.Linear(6, 6), nn.Hardtanh(), nn.Linear(6, 5), nn.PReLU(),
                          nn.Linear(5, 3)),
            torch.randn(7, 5), labels(7, 3),
        ), ("0.weight", "2.weight", "4.weight", "6.weight"), psd=("0.weight", "2.weight", "4.weight", "6.weight"),
    ),
    "conv_relu": Case(conv_net(), CONV_LAYERS, psd=CONV_LAYERS),
    "conv_silu": Case(conv_net(F.silu), CONV_LAYERS, psd=("head.weight",)),
    "conv_1d": Case(conv_1d, ("0.weight", "2.weight", "4.weight"), psd=("2.weight", "4.weight")),
    "conv_transposed": Case(conv_transposed, ("0.weight", "2.weight", "6.weight"), psd=("2.weight", "6.weight")),
    "conv_3d": Case(conv_3d, ("0.weight", "4.weight"), psd=("4.weight",)),
    "encoder_tied": Case(
        encoder(), ("words.weight", *ENCODER_LAYERS), psd=("down.1.weight",), single=("words.weight",),
    ),
    "encoder": Case(encoder(tied=False), (*ENCODER_LAYERS, "head.weight"), psd=("down.1.weight", "head.weight")),
    "time_first": Case(
        encoder(tied=False, time_first=True), (*ENCODER_LAYERS, "head.weight"), psd=("down.1.weight", "head.weight")
    ),
    "gpt_conv1d": Case(gpt_conv1d, ("0.weight", "2.weight", "4.weight"), psd=("2.weight", "4.weight")),
    "tokens": Case(tokens, ("0.weight", "2.weight"), psd=("2.weight",)),
    "lstm": Case(
        recurrent(nn.LSTM), ("core.weight_ih_l0", "core.weight_hh_l0", "head.weight"), psd=("head.weight",),
        single=("core.weight_hh_l0",),
    ),
    "gru": Case(
        recurrent(nn.GRU), ("core.weight_ih_l0", "core.weight_hh_l0", "head.weight"), psd=("head.weight",),
        single=("core.weight_hh_l0",),
    ),
    "lstm_cell": Case(
        lstm_cell, ("cell.weight_ih", "cell.weight_hh", "head.weight"), psd=("head.weight",), single=("cell.weight_hh",)
    ),
    "siamese": Case(siamese, ("twin.weight", "head.weight"), psd=("head.weight",)),
    "siamese_added": Case(siamese_added, ("twin.weight", "head.weight"), psd=("twin.weight", "head.weight")),
    "twice": Case(twice, ("same.weight", "head.weight"), psd=("head.weight",), single=("same.weight",)),
    "einsum": Case(einsum, ("w", "out"), psd=("out",), single=("w",)),
    "standardised": Case(standardised, ("w", "head.weight"), psd=("head.weight",), single=("w",)),
    "weight_norm": Case(
        weight_norm, ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1", "2.weight"),
        psd=("2.weight",),
        single=("0.parametrizations.weight.original0", "0.parametrizations.weight.original1"), twin=WeightNormed,
    ),
    "left_product": Case(left_product, ("w", "out"), psd=("out",), single=("w",)),
    "scaled_addmm": Case(scaled_addmm, ("w", "out"), psd=("out",), single=("w",)),
    "unused": Case(unused, ("used.weight", "spare.weight"), psd=("used.weight", "spare.weight")),
    "hard_swish": Case(gate(F.hardswish), ("first.weight", "head.weight"), psd=("head.weight",)),
    "relu_gate": Case(gate(lambda h: h * h.relu()), ("first.weight", "head.weight"), psd=("head.weight",)),
    "softmax_gate": Case(gate(lambda h: h.softmax(-1)), ("first.weight", "head.weight"), psd=("head.weight",)),
    "embedding": Case(
        embedding_named, ("words.weight", "head.weight"), psd=("head.weight",), pattern="words.weight,head.weight"
    ),
    **{
        f"output_{name}": Case(build, ("net.0.weight", "net.2.weight"), psd=("net.2.weight",))
        for name, build in LAYOUTS.items()
    },
    "squared_error": Case(
        with_targets(mlp(nn.Tanh), lambda n: torch.randn(n, 3)), MLP_LAYERS, psd=("4.weight",), loss="squared_error",
        reference=dense.squared_error,
    ),
    "multi_label": Case(
        with_targets(mlp(nn.Tanh), lambda n: torch.randint(0, 2, (n, 3)).float()), MLP_LAYERS, psd=("4.weight",),
        loss="multi_label", reference=dense.multi_label,
    ),
    "bounded": Case(sharp(mlp(nn.ReLU)), MLP_LAYERS, loss_range="bounded:0.01", reference=dense.bounded(0.01)),
    "clipped": Case(mlp(nn.ReLU), MLP_LAYERS, psd=MLP_LAYERS, loss_range="clip:1.1", reference=dense.clipped(1.1)),
    "clipped_gelu": Case(
        mlp(nn.GELU), MLP_LAYERS, psd=("4.weight",), loss_range="clip:1.1", reference=dense.clipped(1.1)
    ),
    "custom_loss": Case(
        mlp(nn.ReLU), MLP_LAYERS, loss=cosine_loss, reference=lambda f, y: 1 - torch.cos(f - y).mean()
    ),
}  # fmt: skip
