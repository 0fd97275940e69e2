"""Formulas in the place of torch's functions: the same values and gradients, and the second derivative torch lacks."""

import pytest
import torch
from torch.nn import functional as F

from genbound.network.loss_functions import get_loss
from genbound.network.plain_functions import PlainFunctions

y = torch.tensor([2, 0, 1, 2])
named = torch.tensor([[2, 0, -1], [1, -1, 0], [-1, 0, 1], [0, 1, 2]])
labels, sizes = torch.tensor([[1, 2, 3], [3, 3, 1], [2, 1, 1], [4, 0, 0]]), torch.tensor([3, 3, 2, 1])
times = torch.tensor([7, 7, 5, 6])
bags, offsets = torch.tensor([3, 1, 1, 0, 4, 2, 3]), torch.tensor([0, 3, 3, 5])
joined = torch.cat([row[:size] for row, size in zip(labels, sizes, strict=True)])


def ctc(targets=labels, sizes=sizes, **arguments):
    return lambda x: F.ctc_loss(x.log_softmax(-1).transpose(0, 1), targets, times, sizes, **arguments)


CASES = {
    "multi_margin": (lambda x: F.multi_margin_loss(x, y, reduction="none"), (4, 3)),
    "multi_margin_squared": (lambda x: F.multi_margin_loss(x, y, p=2, margin=1.5, reduction="none"), (4, 3)),
    "multi_margin_weighted": (lambda x: F.multi_margin_loss(x, y, weight=torch.tensor([1.0, 2.0, 0.5]).to(x)), (4, 3)),
    "multi_margin_one": (lambda x: F.multi_margin_loss(x, y[0]), (3,)),
    "multilabel_margin": (lambda x: F.multilabel_margin_loss(x, named, reduction="none"), (4, 3)),
    "multilabel_margin_sum": (lambda x: F.multilabel_margin_loss(x, named, reduction="sum"), (4, 3)),
    "ctc": (ctc(reduction="none"), (4, 7, 5)),
    "ctc_mean": (ctc(), (4, 7, 5)),
    "ctc_joined": (ctc(joined, reduction="sum"), (4, 7, 5)),
    "ctc_another_blank": (ctc(labels - 1, sizes, blank=4, reduction="none"), (4, 7, 5)),
    "ctc_without_labels": (ctc(labels, torch.tensor([0, 3, 0, 1]), reduction="none"), (4, 7, 5)),
    "bag_sum": (lambda w: F.embedding_bag(bags, w, offsets, mode="sum"), (5, 3)),
    "bag_mean": (lambda w: F.embedding_bag(bags, w, offsets, mode="mean"), (5, 3)),
    "bag_max": (lambda w: F.embedding_bag(bags, w, offsets, mode="max"), (5, 3)),
    "bag_rows": (lambda w: F.embedding_bag(bags[:6].view(2, 3), w, mode="mean"), (5, 3)),
    "bag_padded": (lambda w: F.embedding_bag(bags, w, offsets, mode="mean", padding_idx=1), (5, 3)),
    "bag_padded_from_the_end": (lambda w: F.embedding_bag(bags, w, offsets, mode="max", padding_idx=-2), (5, 3)),
    "bag_weighted": (
        lambda w: F.embedding_bag(bags, w, offsets, mode="sum", per_sample_weights=torch.arange(7.0).to(w)),
        (5, 3),
    ),
    "bag_with_its_end": (
        lambda w: F.embedding_bag(bags, w, torch.tensor([0, 3, 5, 7]), mode="sum", include_last_offset=True),
        (5, 3),
    ),
}  # fmt: skip


def gradient(function, x):
    x = x.clone().requires_grad_()
    out = function(x)
    combination = torch.linspace(-1, 1, out.numel(), dtype=x.dtype).view(out.shape)
    return out.detach(), torch.autograd.grad((out * combination).sum(), x)[0]


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name):
    function, shape = CASES[name]

    def plain(x):
        with PlainFunctions() as mode:
            out = function(x)
        assert mode.replaced
        return out

    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (value, slope), (wanted, wanted_slope) = gradient(plain, x), gradient(function, x)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, wanted_slope, rtol=1e-10, atol=1e-12)
    # The second derivative, which torch does not have, against differences of torch's own first one.
    u, step = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), 1e-5
    at = x.clone().requires_grad_()
    out = plain(at)
    combination = torch.linspace(-1, 1, out.numel(), dtype=x.dtype).view(out.shape)
    first = torch.autograd.grad((out * combination).sum(), at, create_graph=True)[0]
    second = torch.autograd.grad((first * u).sum(), at)[0] if first.requires_grad else torch.zeros_like(x)
    difference = (gradient(function, x + step * u)[1] - gradient(function, x - step * u)[1]) / (2 * step)
    torch.testing.assert_close(second, difference, rtol=1e-6, atol=1e-8)


def test_a_label_that_cannot_be_emitted():
    """Three equal labels need five steps: the loss is infinite, or zero if that is asked for."""
    x, lengths = torch.zeros(2, 3, 4).log_softmax(-1), torch.tensor([3, 3])
    targets, sizes = torch.tensor([[1, 1, 1], [1, 2, 3]]), torch.tensor([3, 3])
    for zero in (False, True):
        given = (x.transpose(0, 1), targets, lengths, sizes)
        wanted = F.ctc_loss(*given, reduction="none", zero_infinity=zero)
        with PlainFunctions():
            found = F.ctc_loss(*given, reduction="none", zero_infinity=zero)
        torch.testing.assert_close(found, wanted)


LOSSES = {
    "multi_margin": lambda o, t: F.multi_margin_loss(o, t.argmax(1), p=2, reduction="none"),
    "soft_margin": lambda o, t: F.soft_margin_loss(o, t.sign(), reduction="none").sum(1),
    "huber": lambda o, t: F.huber_loss(o, t, reduction="none").sum(1),
    "gaussian_nll": lambda o, t: F.gaussian_nll_loss(o[:, 0], t[:, 0], o[:, 1].exp(), reduction="none"),
    "compiled": torch.compile(lambda o, t: (o - t).pow(4).sum(1)),
}
TWINS = {
    "multi_margin": lambda o, t: (
        ((1 - o[t.argmax()] + o).clamp(min=0) ** 2 * (torch.arange(3) != t.argmax())).sum() / 3
    ),
    "soft_margin": lambda o, t: F.softplus(-o * t.sign()).sum(),
    "huber": lambda o, t: torch.where((o - t).abs() < 1, 0.5 * (o - t) ** 2, (o - t).abs() - 0.5).sum(),
    "gaussian_nll": lambda o, t: 0.5 * (o[1] + (o[0] - t[0]) ** 2 * torch.exp(-o[1])),
    "compiled": lambda o, t: (o - t).pow(4).sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_users_loss_has_the_hessian_of_a_written_out_twin(name):
    """Reverse over reverse: some of them have no forward mode, some refuse two types or vmap."""
    outputs = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    targets = torch.randn(5, 3, generator=torch.Generator().manual_seed(6))  # in single precision, as data are
    factor = get_loss(LOSSES[name]).output_factor(outputs, targets)
    columns = torch.stack([factor.columns(e.expand(5, 3)) for e in torch.eye(3, dtype=torch.float64)], 2)
    found = columns * factor.signs.unsqueeze(1) @ columns.mT
    wanted = torch.stack(
        [torch.func.hessian(TWINS[name])(o, t) for o, t in zip(outputs, targets.double(), strict=True)]
    )
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
