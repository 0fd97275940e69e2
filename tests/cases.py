"""A table of tiny networks (a weight has at most some 200 entries), each with init, data, loss and what is known of it.

A case says by hand which layers there are and which blocks must be claimed positive semidefinite (``psd``). Whatever is
not in ``psd`` must not be claimed. The number of samples is odd, so that the last batch is short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import dense
import torch
from torch import nn
from torch.nn import functional as F

from genbound.network.problem import Problem

D = torch.float64


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


def labels(n: int, k: int) -> torch.Tensor:
    return (torch.arange(n) * 5 + 1) % k


class Apply(nn.Module):
    """A function of a module's own parameters as a network."""

    def __init__(self, function, **parameters):
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, value if isinstance(value, nn.Module) else nn.Parameter(value))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def weight(*shape):
    return torch.randn(*shape) / math.sqrt(shape[-1])


# -- feed-forward ---------------------------------------------------------------------------------------------


def mlp(activation, widths=(5, 7, 6, 3), n=7, bias=True):
    def build():
        steps = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            steps += [nn.Linear(a, b, bias=bias), activation()]
        return nn.Sequential(*steps[:-1]), torch.randn(n, widths[0]), labels(n, widths[-1])

    return build


MLP_LAYERS = ("0.weight", "2.weight", "4.weight")


def with_targets(build, targets):
    def changed():
        model, inputs, old = build()
        return model, inputs, targets(len(old))

    return changed


def sharp(build):
    """Larger weights, and so larger scores."""

    def changed():
        model, inputs, targets = build()
        with torch.no_grad():
            for p in model.parameters():
                p *= 3
        return model, inputs, targets

    return changed


class ConvNet(nn.Module):
    """Stride, groups, dilation, padding, a residual branch, BatchNorm with running statistics, pooling."""

    def __init__(self, activation=F.relu):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)
        self.activation = activation
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.3, 2.0)
            self.norm.weight.normal_(1, 0.3)
            self.norm.bias.normal_()

    def forward(self, x):
        h = self.activation(self.norm(self.stem(x)))
        h = F.max_pool2d(self.activation(self.branch(h) + self.shortcut(h)), 2)
        return self.head(h.mean((2, 3)))


def conv_net(activation=F.relu):
    return lambda: (ConvNet(activation), torch.randn(5, 2, 8, 8), labels(5, 3))


CONV_LAYERS = ("stem.weight", "branch.weight", "shortcut.weight", "head.weight")


def conv_1d():
    net = nn.Sequential(
        nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.ConvTranspose1d(3, 2, 3, stride=2, output_padding=1),
        nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    return net, torch.randn(5, 2, 8), labels(5, 3)


def conv_transposed():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 2, stride=2), nn.Softplus(), nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, groups=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return net, torch.randn(5, 2, 6, 6), labels(5, 3)


def conv_3d():
    net = nn.Sequential(nn.Conv3d(1, 2, 2), nn.SiLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(2, 2))
    return net, torch.randn(5, 1, 3, 3, 3), labels(5, 2)


# -- sequences ------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """One head written out; ``time_first`` runs its linear maps on [T, N, d]."""

    def __init__(self, d, time_first=False):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.time_first = time_first

    def forward(self, h, mask):
        if self.time_first:
            h = h.transpose(0, 1).contiguous()
        q, k, v = self.q(h), self.k(h), self.v(h)
        if self.time_first:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        scores = (q @ k.mT) / math.sqrt(h.shape[-1])
        out = scores.masked_fill(~mask[:, None, :], -1e9).softmax(-1) @ v
        if self.time_first:
            return self.o(out.transpose(0, 1).contiguous()).transpose(0, 1)
        return self.o(out)


class Encoder(nn.Module):
    """Two layers, a padding mask, a frozen layer, and a head that is the word embedding."""

    def __init__(self, vocabulary=9, d=4, tied=True, time_first=False):
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, d), nn.Embedding(6, d)
        self.attention = nn.ModuleList([Attention(d, time_first) for _ in range(2)])
        self.up = nn.ModuleList([nn.Linear(d, 6) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(6, d) for _ in range(2)])
        self.norm = nn.ModuleList([nn.LayerNorm(d) for _ in range(2)])
        self.head = nn.Linear(d, vocabulary if tied else 3, bias=False)
        if tied:
            self.head.weight = self.words.weight
        self.up[0].weight.requires_grad_(False)

    def forward(self, ids, mask):
        mask = mask.bool()
        h = self.words(ids) + self.places.weight[: ids.shape[1]]
        for attention, up, down, norm in zip(self.attention, self.up, self.down, self.norm, strict=True):
            h = norm(h + attention(h, mask))
            h = h + down(F.gelu(up(h)))
        pooled = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(pooled)


def encoder(tied=True, time_first=False):
    def build():
        net = Encoder(tied=tied, time_first=time_first)
        ids = torch.randint(0, 9, (5, 5))
        lengths = torch.tensor([5, 3, 4, 5, 2])
        mask = (torch.arange(5) < lengths[:, None]).long()
        return net, {"ids": ids, "mask": mask}, labels(5, 9 if tied else 3)

    return build


ENCODER_LAYERS = tuple(
    [f"attention.{i}.{p}.weight" for i in range(2) for p in "qkvo"]
    + [f"up.{i}.weight" for i in range(2)]
    + [f"down.{i}.weight" for i in range(2)]
)


class Conv1D(nn.Module):
    """GPT-2's linear map: the weight is [in, out] and goes into addmm as it is."""

    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight(d_in, d_out)), nn.Parameter(torch.zeros(d_out))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


def gpt_conv1d():
    net = nn.Sequential(Conv1D(4, 9), nn.GELU(), Conv1D(9, 4), nn.Flatten(), nn.Linear(12, 3))
    return net, torch.randn(5, 3, 4), labels(5, 3)


def tokens():
    """Token-level labels, some not counted, another number in each sequence."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    y = labels(20, 3).view(5, 4).clone()
    y[0, 2:], y[3, 0] = -100, -100
    return net, torch.randn(5, 4, 4), y


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.core = kind(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.core(x)[0][:, -1])


def recurrent(kind):
    return lambda: (Recurrent(kind), torch.randn(5, 3, 3), labels(5, 2))


def lstm_cell():
    def run(net, x):
        h, c = x.new_zeros(len(x), 4), x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            h, c = net.cell(x[:, t], (h, c))
        return net.head(h)

    return Apply(run, cell=nn.LSTMCell(3, 4), head=nn.Linear(4, 2)), torch.randn(5, 3, 3), labels(5, 2)


# -- one weight, several or unusual uses ----------------------------------------------------------------------


def siamese():
    """The same weight on both halves of the input, side by side."""
    run = lambda net, x: net.head(F.gelu(net.twin(x[:, :4])) * F.gelu(net.twin(x[:, 4:])))  # noqa: E731
    return Apply(run, twin=nn.Linear(4, 6), head=nn.Linear(6, 3)), torch.randn(5, 8), labels(5, 3)


def siamese_added():
    """Side by side and only added: still piecewise linear."""
    run = lambda net, x: net.head(net.twin(x[:, :4]).relu() - net.twin(x[:, 4:]).relu())  # noqa: E731
    return Apply(run, twin=nn.Linear(4, 6), head=nn.Linear(6, 3)), torch.randn(5, 8), labels(5, 3)


def twice():
    """The same weight after itself, through ReLU."""
    run = lambda net, x: net.head(net.same(net.same(x).relu()).relu())  # noqa: E731
    return Apply(run, same=nn.Linear(5, 5), head=nn.Linear(5, 3)), torch.randn(7, 5), labels(7, 3)


def einsum():
    run = lambda net, x: F.gelu(torch.einsum("ntd,hde->nhe", x, net.w)).flatten(1) @ net.out  # noqa: E731
    return Apply(run, w=weight(2, 3, 4), out=weight(8, 3)), torch.randn(5, 2, 3), labels(5, 3)


def standardised():
    """Weight standardisation, as in big-transfer networks."""

    def run(net, x):
        w = net.w
        mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
        h = F.conv2d(x, (w - mean) / (var + 1e-5).sqrt(), padding=1).relu()
        return net.head(h.mean((2, 3)))

    return Apply(run, w=weight(3, 2, 3, 3), head=nn.Linear(3, 3)), torch.randn(5, 2, 5, 5), labels(5, 3)


class WeightNormed(nn.Module):
    """Weight normalisation under the names of torch's parametrisation, for the dense twin: by its formula, because the second
    derivative of torch's fused operation is wrong (it keeps the norm constant)."""

    def __init__(self, net):
        super().__init__()
        for name, p in net.named_parameters():
            *path, last = name.split(".")
            place = self
            for part in path:
                if not hasattr(place, part):
                    place.register_module(part, nn.Module())
                place = getattr(place, part)
            setattr(place, last, nn.Parameter(p.detach().clone()))

    def forward(self, x):
        first, last = self.get_submodule("0"), self.get_submodule("2")
        g, v = first.parametrizations.weight.original0, first.parametrizations.weight.original1
        h = x @ (g * v / v.square().sum(1, keepdim=True).sqrt()).mT + first.bias
        return h.tanh() @ last.weight.mT + last.bias


def weight_norm():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3))
    return net, torch.randn(5, 5), labels(5, 3)


def left_product():
    """The weight stands on the left of a product, and on the right of another with a transposition of its own."""
    run = lambda net, x: F.silu((net.w @ x.T).T + x @ net.w.mT) @ net.out.T  # noqa: E731
    return Apply(run, w=weight(4, 4), out=weight(3, 4)), torch.randn(5, 4), labels(5, 3)


def scaled_addmm():
    run = lambda net, x: torch.addmm(net.bias, x, net.w, alpha=2.5).tanh() @ net.out  # noqa: E731
    return Apply(run, w=weight(4, 5), bias=torch.randn(5), out=weight(5, 3)), torch.randn(5, 4), labels(5, 3)


def unused():
    run = lambda net, x: net.used(x)  # noqa: E731
    return Apply(run, used=nn.Linear(4, 3), spare=nn.Linear(4, 3)), torch.randn(5, 4), labels(5, 3)


def gate(function):
    """A gate on the first layer's output: piecewise-looking, and curved."""

    def build():
        run = lambda net, x: net.head(function(net.first(x)))  # noqa: E731
        return Apply(run, first=nn.Linear(4, 5), head=nn.Linear(5, 3)), torch.randn(9, 4), labels(9, 3)

    return build


def embedding_named():
    run = lambda net, x: net.head(torch.tanh(net.words(x)).flatten(1))  # noqa: E731
    return Apply(run, words=nn.Embedding(7, 3), head=nn.Linear(9, 3)), torch.randint(0, 7, (5, 3)), labels(5, 3)


def cosine_loss(outputs, targets):
    """A custom per-sample loss that is convex nowhere: bounded, with both signs of curvature."""
    return 1 - torch.cos(outputs - targets.to(outputs.dtype).unsqueeze(-1)).mean(-1)


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
    "encoder_tied": Case(encoder(), ("words.weight", *ENCODER_LAYERS), psd=("down.1.weight",), single=("words.weight",)),
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
