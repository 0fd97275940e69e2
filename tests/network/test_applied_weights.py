"""How a weight acts is read alike from autograd's record of a pass and from the running pass."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from genbound.network.applied_weights import find_uses
from genbound.network.graph import Graph
from genbound.network.weight_uses import ConvolutionUse, EmbeddingUse, LeafUse, LinearUse
from genbound.network.weight_watch import WeightedFunctions, WeightWatch

NUM = 3
ROWS = torch.tensor([[0, 2, 1, 0], [4, 4, 3, 0], [1, 2, 3, 4]])


def linear(*shape):
    return lambda x, w: F.linear(x, w), (NUM, *shape, 4), (5, 4), LinearUse


# function of inputs and weight, shape of the inputs, shape of the weight, its use
KNOWN = {
    "linear": linear(),
    "linear on tokens": linear(6),
    "linear on a grid": linear(2, 3),
    "linear of one row": linear(1),
    "with a bias": (lambda x, w: F.linear(x, w, torch.ones(5, dtype=w.dtype)), (NUM, 6, 4), (5, 4), LinearUse),
    "not contiguous": (lambda x, w: F.linear(x.mT, w), (NUM, 4, 6), (5, 4), LinearUse),
    "stored turned over": (lambda x, w: x @ w, (NUM, 6, 4), (4, 5), LinearUse),
    "stored turned over, square": (lambda x, w: x @ w, (NUM, 4), (4, 4), LinearUse),
    "square": (lambda x, w: x @ w.T, (NUM, 4), (4, 4), LinearUse),
    "turned by permute": (lambda x, w: x @ w.permute(1, 0), (NUM, 4), (5, 4), LinearUse),
    "a single output": (lambda x, w: F.linear(x, w), (NUM, 6, 4), (1, 4), LinearUse),
    "a single input": (lambda x, w: F.linear(x, w), (NUM, 6, 1), (5, 1), LinearUse),
    "GPT-2's": (lambda x, w: torch.addmm(torch.ones(5, dtype=w.dtype), x, w), (NUM, 4), (4, 5), LinearUse),
    "convolution": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), (NUM, 4, 5, 5), (6, 4, 3, 3), ConvolutionUse),
    "grouped": (lambda x, w: F.conv1d(x, w, groups=2, dilation=2), (NUM, 4, 9), (6, 2, 3), ConvolutionUse),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (NUM, 4, 3, 3), (4, 2, 2, 2), ConvolutionUse),
    "embedding": (lambda x, w: F.embedding(ROWS, w) * x, (NUM, 4, 1), (5, 2), EmbeddingUse),
}  # fmt: skip
UNKNOWN = {
    "weight on the left": (lambda x, w: w @ x, (4, 6), (5, 4)),
    "part of the weight": (lambda x, w: F.linear(x, w[:3]), (NUM, 4), (5, 4)),
    "a later part of the weight": (lambda x, w: F.linear(x, w[2:]), (NUM, 4), (5, 4)),
    "a kernel as a matrix": (lambda x, w: F.linear(x, w.flatten(1)), (NUM, 4), (5, 4, 1)),
    "a copy": (lambda x, w: F.linear(x, 1 * w), (NUM, 4), (5, 4)),
    "scaled": (lambda x, w: torch.addmm(torch.ones(5, dtype=w.dtype), x, w.T, alpha=2), (NUM, 4), (5, 4)),
    "flipped kernel": (lambda x, w: F.conv1d(x, w.mT), (NUM, 3, 9), (5, 3, 3)),
    "rows that no number of samples has": (lambda x, w: F.linear(x, w), (NUM + 1, 4), (5, 4)),
    "gradients by frequency": (lambda x, w: F.embedding(ROWS, w, scale_grad_by_freq=True) * x, (NUM, 4, 1), (5, 2)),
}  # fmt: skip


def tensors(x_shape, w_shape):
    generator = torch.Generator().manual_seed(0)
    x, w, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (x_shape, w_shape, w_shape))
    return x, w, v


def recorded(function, x, w, samples_first=True):
    leaf = w.clone().requires_grad_()
    output = function(x.clone().requires_grad_(), leaf)
    return find_uses(Graph(output, {"w": leaf}), "w", leaf, NUM, samples_first)


def running(function, x, w, samples_first=True, everything=False):
    """The uses that the running pass shows, with the results, and the weights that went into something else."""
    layer = SimpleNamespace(name="w", shape=tuple(w.shape), samples_first=samples_first)
    problem, found = SimpleNamespace(params={"w": w}, layers=[layer]), []

    def visit(func, args, kwargs, met):
        out = func(*args, **kwargs)
        if met is not None:
            found.append((met[1], out))
        return out

    watch = WeightWatch(problem, NUM, visit)
    with torch.no_grad(), watch if everything else WeightedFunctions(watch):
        function(x, w)
    return found, watch.unread


@pytest.mark.parametrize("samples_first", [True, False])
@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("name", KNOWN)
def test_both_readers_see_one_use(name, everything, samples_first):
    function, x_shape, w_shape, kind = KNOWN[name]
    x, w, v = tensors(x_shape, w_shape)
    (record,) = recorded(function, x, w, samples_first)
    ((seen, out),), unread = running(function, x, w, samples_first, everything)
    assert type(record) is type(seen) is kind and not unread
    assert getattr(record, "transposed", None) == getattr(seen, "transposed", None)
    per_sample = torch.stack([v, 2 * v, -v])
    for direction in (v, per_sample):
        moved = seen.perturb(direction)
        assert torch.equal(moved, record.perturb(direction))
    assert torch.equal(seen.adjoint(moved), record.adjoint(moved))


@pytest.mark.parametrize("name", KNOWN)
def test_a_use_is_how_the_weight_moves_the_result(name):
    function, x_shape, w_shape, _ = KNOWN[name]
    x, w, v = tensors(x_shape, w_shape)
    ((use, out),), _ = running(function, x, w)
    ((_, moved),), _ = running(function, x, w + v)
    torch.testing.assert_close(use.perturb(v).reshape(out.shape), moved - out, rtol=0, atol=1e-12)
    # The adjoint of every sample adds up to that of all of them, <A v, q> = <v, sum_n A_n* q>.
    q = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    q = q.reshape(use.perturb(v).shape)
    torch.testing.assert_close((use.perturb(v) * q).sum(), (use.adjoint(q).sum(0) * v).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", UNKNOWN)
def test_neither_reader_guesses(name):
    function, x_shape, w_shape = UNKNOWN[name]
    x, w, _ = tensors(x_shape, w_shape)
    (use,) = recorded(function, x, w)
    assert isinstance(use, LeafUse)
    found, unread = running(function, x, w, everything=True)
    assert not found and unread == {"w"}


def test_looking_at_a_weight_is_no_use_of_it():
    x, w, _ = tensors((NUM, 4), (5, 4))
    found, unread = running(lambda x, w: (w.detach(), w.T, w[2:], w.view(-1), w.unsqueeze(0)), x, w, everything=True)
    assert not found and not unread


def test_only_functions_that_are_given_a_weight_are_watched():
    x, w, _ = tensors((NUM, 4), (5, 4))
    layer = SimpleNamespace(name="w", shape=(5, 4), samples_first=True)
    seen = []

    def visit(func, args, kwargs, met):
        seen.append(func.overloadpacket.__name__)
        return func(*args, **kwargs)

    watch = WeightWatch(SimpleNamespace(params={"w": w}, layers=[layer]), NUM, visit)
    with torch.no_grad(), WeightedFunctions(watch):
        torch.exp(F.linear(torch.sin(x), w))
    assert "mm" in seen and not {"exp", "sin"} & set(seen)
