"""Derivatives that a network or a loss hides from autograd are refused, and what only looks like it is not."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import genbound
from genbound.errors import GenboundError
from genbound.network.loss_derivative_checks import check_loss_derivatives
from genbound.network.loss_functions import Loss, get_loss


class Net(nn.Module):
    """Two layers with a function of the first one's result, and of its weight, between them."""

    def __init__(self, between, **modules):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 6), nn.Linear(6, 3), between
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.second(self.between(self, x))


def problem(between, dtype=torch.float64, loss="cross_entropy", scale=1.0, **modules):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net(between, **modules).to(dtype)
        init = {n: p.detach() - 0.1 * torch.randn_like(p) for n, p in model.named_parameters()}
        data = (scale * torch.randn(5, 4, dtype=dtype), torch.arange(5) % 3)
    return genbound.Problem(model, init, data, loss)


class OnceTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class SavedIntermediate(torch.autograd.Function):
    """Its backward pass uses a number of its forward pass, which is a constant to a second derivative."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.slope = 1 - y**2
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class GoodTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y**2)


def under_no_grad(net, x):
    with torch.no_grad():
        return net.first(x).tanh()


def partly_under_no_grad(net, x):
    h = net.first(x)
    with torch.no_grad():
        gate = h.sigmoid()
    return h * gate


SECOND, FIRST, NONE = (
    "second derivative in layer first",
    "the derivative in layer first.weight",
    "layer first.weight moves",
)
CUT = {
    "once differentiable": (lambda net, x: OnceTanh.apply(net.first(x)), SECOND, "OnceTanh"),
    "saved": (lambda net, x: SavedIntermediate.apply(net.first(x)), SECOND, "SavedIntermediate"),
    "no_grad": (under_no_grad, NONE, "no_grad"),
    "gate under no_grad": (partly_under_no_grad, FIRST, "no_grad"),
    "data": (lambda net, x: F.linear(x, net.first.weight.data).tanh(), NONE, "data"),
    "scale detached": (
        lambda net, x: F.linear(x, net.first.weight / net.first.weight.detach().norm()).tanh(), FIRST, "detach"
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CUT)
def test_a_cut_derivative_is_refused(name, dtype):
    between, what, by = CUT[name]
    with pytest.raises(GenboundError) as refusal:
        problem(between, dtype)
    assert what in str(refusal.value) and by in str(refusal.value)


WHOLE = {
    "plain": lambda net, x: net.first(x).tanh(),
    "relu": lambda net, x: net.first(x).relu(),
    "own function": lambda net, x: GoodTanh.apply(net.first(x)),
    "dead": lambda net, x: (net.first(x) - 1e3).relu(),
    "max": lambda net, x: torch.maximum(net.first(x), net.first(x).flip(1)),
    "unused": lambda net, x: net.first(x).tanh(),
    "detached input": lambda net, x: net.first(x.detach()).tanh(),
    "hard routing": lambda net, x: net.first(x).tanh() * (1 + net.router(x).argmax(1, keepdim=True)),
    "saturated": lambda net, x: 50 * net.first(x).tanh(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_derivative_is_not_refused(name, dtype):
    assert problem(WHOLE[name], dtype, spare=nn.Linear(2, 2), router=nn.Linear(4, 2)).remarks == ()


@pytest.mark.parametrize("width", [3, 3000])
def test_kinks_are_no_cuts(width):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 30), nn.ReLU(), nn.Linear(30, 3))
        init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        data = (torch.randn(4, 4), torch.arange(4) % 3)
    assert genbound.Problem(model, init, data).remarks == ()


class Dead(nn.Module):
    """Channels whose weights are next to nothing: at every pixel they stand at their kinks, and leave them together."""

    def __init__(self, hidden: bool):
        super().__init__()
        self.hidden = hidden
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Linear(8 * 62**2, 5)
        with torch.no_grad():
            self.first.weight[:7] *= 1e-7
            self.first.bias[:7] *= 1e-7

    def forward(self, x):
        weight = self.first.weight
        if self.hidden:
            weight = torch.cat([weight[:7], weight[7:].detach()])
        return self.second(F.conv2d(x, weight, self.first.bias).relu().flatten(1))


def test_dead_channels_are_no_cuts():
    for seed in range(3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            data = (torch.randn(4, 1, 64, 64), torch.arange(4))
            whole = Dead(hidden=False)
            cut = Dead(hidden=True)
        init = {n: torch.zeros_like(p) for n, p in whole.named_parameters()}
        assert genbound.Problem(whole, init, data).remarks == ()
        with pytest.raises(GenboundError, match="derivative in layer first.weight"):
            genbound.Problem(cut, init, data)


def test_the_derivative_of_a_straight_through_estimator_is_noted():
    def rounded(net, x):
        w = net.first.weight
        return F.linear(x, w + ((4 * w).round() / 4 - w).detach()).tanh()

    found = problem(rounded)
    assert len(found.remarks) == 1 and "surrogate" in found.remarks[0] and "first.weight" in found.remarks[0]
    results = genbound.evaluate(found, ["displacement_norm"])
    assert "surrogate" in results.to_markdown() and results.config["remarks"] == list(found.remarks)


def test_a_model_that_computes_in_single_precision_is_tried_there():
    between = lambda net, x: F.linear(x.float(), net.first.weight.float()).tanh().to(x.dtype)  # noqa: E731
    problem(between, torch.float32)
    half = lambda net, x: partly_under_no_grad(net, x.float()).float()  # noqa: E731
    with pytest.raises(GenboundError, match="derivative in layer"):
        problem(half, torch.float32)


LOSSES = {
    "first": lambda f, y: F.cross_entropy(f, y, reduction="none") + f.detach().square().sum(1),
    "constant": lambda f, y: F.cross_entropy(f.detach(), y, reduction="none") + 0 * f.sum(1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_with_a_cut_derivative_is_refused(name):
    with pytest.raises(GenboundError, match="first derivative of the loss mine"):
        problem(WHOLE["plain"], loss=Loss("mine", LOSSES[name]))


def test_a_loss_whose_second_derivative_is_cut_is_refused():
    def focal(f, y):
        plain = F.cross_entropy(f, y, reduction="none")
        return OnceTanh.apply(plain)

    with pytest.raises(GenboundError, match="second derivative of the loss mine"):
        problem(WHOLE["plain"], loss=Loss("mine", focal))


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_losses_that_are_flat_or_bent_are_not_refused(scale):
    for loss in ("cross_entropy", Loss("hinge", lambda f, y: F.multi_margin_loss(f, y, reduction="none"))):
        problem(WHOLE["plain"], loss=loss, scale=scale)


def test_a_loss_at_its_minimum_is_not_refused():
    outputs = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    check_loss_derivatives(get_loss("squared_error"), outputs, outputs)
    cut = Loss("cut", lambda f, y: (f - y).square().sum(1) + (f - y).detach().sum(1))
    with pytest.raises(GenboundError, match="first derivative of the loss cut"):
        check_loss_derivatives(cut, outputs, outputs)


@pytest.mark.parametrize("margin", [0.0, 3.0, 12.0, 25.0, 34.0, 60.0, 300.0, 3000.0])
@pytest.mark.parametrize("name", ["cross_entropy", "squared_error"])
def test_a_loss_that_is_fitted_to_any_degree_is_not_refused(name, margin):
    targets = torch.tensor([0, 2])
    rows = F.one_hot(targets, 3).double()
    outputs = margin * rows + 0.1 * torch.tensor([[0.3, -1.0, 0.2], [2.0, 0.1, -0.7]])
    check_loss_derivatives(get_loss(name), outputs, targets if name == "cross_entropy" else rows)


def test_a_layer_that_the_pass_itself_changes_is_refused():
    """``max_norm`` writes into the weight: noise would be clipped, and derivatives would not know."""
    model = nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), nn.Flatten(), nn.Linear(8, 3))
    init = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    data = (torch.arange(8).view(4, 2), torch.arange(4) % 3)
    with pytest.raises(GenboundError, match=r"changes layer 0\.weight in place \(as max_norm.*--layers"):
        genbound.Problem(model, init, data, layers="*")
    assert [layer.name for layer in genbound.Problem(model, init, data).layers] == ["2.weight"]


class InDouble(nn.Module):
    """Says something to inputs in double precision."""

    def __init__(self, said):
        super().__init__()
        self.fc, self.said = nn.Linear(4, 3), said

    def forward(self, x):
        if x.dtype == torch.float64:
            raise self.said
        return torch.tanh(self.fc(x))


@pytest.mark.parametrize(
    ("said", "swallowed"),
    [(ValueError("give float32 inputs"), True), (AssertionError(), True), (RuntimeError("not enough memory"), False)],
)
def test_the_trial_in_double_precision_swallows_what_is_about_precision_alone(said, swallowed):
    torch.manual_seed(0)
    net = InDouble(said)
    init = {name: 0.9 * p.detach() for name, p in net.named_parameters()}
    data = (torch.randn(8, 4), torch.arange(8) % 3)
    if swallowed:
        assert genbound.Problem(net, init, data).layers
    else:
        with pytest.raises((RuntimeError, GenboundError), match="not enough memory"):
            genbound.Problem(net, init, data)
