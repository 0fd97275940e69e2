"""Tiny networks on sequences: attention, GPT-2's linear map, token-level labels, recurrent cells."""

from __future__ import annotations

import math

import torch
from small_nets import Apply, labels, weight
from torch import nn
from torch.nn import functional as F


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
