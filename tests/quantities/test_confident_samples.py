"""Samples whose probability rounds to 1 in single precision: what little curvature they have is right all the same."""

import copy

import dense
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.errors import GenboundError
from genbound.network.label_losses import BINARY
from genbound.network.loss_functions import get_loss


def by_class(output, target):
    """Cross-entropy of label 0 that loses no digits."""
    return F.softplus(torch.logsumexp(output[1:] - output[0], 0))


def by_score(output, target):
    """The mean binary cross-entropy of scores that all say 1, or all 0, in double precision."""
    return F.softplus(torch.where(target > 0, -1, 1) * output, threshold=100).mean()


def own_entropy(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def own_binary(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets, reduction="none")


ZERO, ONES = torch.zeros(10, dtype=torch.long), torch.ones(10, dtype=torch.long)
CASES = {
    "classes": (3, ZERO, "cross_entropy", by_class),
    "probabilities": (3, F.one_hot(ZERO, 3).float(), "cross_entropy", by_class),
    "own, classes": (3, ZERO, own_entropy, by_class),
    "a score": (1, ONES, "cross_entropy", by_score),
    "a score, label 0": (1, ZERO, "cross_entropy", by_score),  # all wrong, with the margin
    "own, a score": (1, ONES.float(), own_binary, by_score),
    "scores": (3, torch.ones(10, 3), "multi_label", by_score),
    "scores, label 0": (3, torch.zeros(10, 3), "multi_label", by_score),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("margin", "dtype"), [(0.0, torch.float32), (14.0, torch.float32), (20.0, torch.float32), (20.0, torch.float64)]
)
def test_curvature_of_confident_samples(case, margin, dtype):
    width, y, loss, stable = CASES[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, width)), torch.randn(10, 4)
        init = {name: p.detach() + 0.3 * torch.randn_like(p) for name, p in net.named_parameters()}
    with torch.no_grad():
        net[2].bias[0 if stable is by_class else slice(None)] += margin
    layer = "0.weight"
    truth = dense.Truth(net, init, list(x.double()), list(y), stable, [layer])
    moved = {name: p.to(dtype) for name, p in init.items()}
    problem = genbound.Problem(copy.deepcopy(net).to(dtype), moved, (x.to(dtype), y), loss=loss)
    names, options = ["hessian_trace", "max_quadratic_form"], {"hessian_trace": {"exact_products": 10**9}}
    found = genbound.evaluate(problem, names, options=options).quantities
    row, best = found["max_quadratic_form"]["layers"][layer], float(truth.positive_forms(layer).max())
    assert row["lower"] <= best <= row["upper"]
    trace = found["hessian_trace"]["layers"][layer]["value"]
    assert trace == pytest.approx(float(truth.traces(layer).mean()), rel=1e-5)


@pytest.mark.parametrize("loss", [BINARY, get_loss("multi_label"), BINARY.bounded(1e-4, 2)], ids=lambda loss: loss.name)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_score_has_all_digits_in_single_precision(loss, label):
    scores = torch.tensor([0.0, 1e-3, 1.0, 5.0, 14.0, 20.0, 25.0, 80.0], dtype=torch.float64)
    scores = torch.cat([-scores.flip(0), scores]).unsqueeze(1)
    targets = torch.full_like(scores, label)
    q = targets.double()

    def formula(z):  # in a precision whose 1 - p has digits where single precision has none
        p = z.sigmoid() if label else (-z).sigmoid()
        return -(1e-4 + (1 - 2e-4) * p).log() if "bounded" in loss.name else F.softplus((1 - 2 * q) * z, threshold=100)

    def derivatives(function, z):
        z = z.clone().requires_grad_()
        value = function(z).sum(1)
        (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), z)
        return value, first, second

    found = derivatives(lambda z: loss.per_sample(z, targets.to(z.dtype)).unsqueeze(1), scores.float())
    near = scores.abs().squeeze(1) < 30  # beyond, the formula has none either
    for a, b in zip(found, derivatives(formula, scores), strict=True):
        torch.testing.assert_close(a[near].double(), b[near], rtol=1e-5, atol=0.0)


def weighted(outputs, targets):
    return F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2.0, 3.0]), reduction="none")


def strict(outputs, targets):
    assert outputs.dtype == torch.float32
    return F.cross_entropy(outputs, targets, reduction="none")


def hidden(outputs, targets):
    return weighted(outputs, targets) * outputs.detach().square().sum(1)


def hidden_slope(outputs, targets):
    return (weighted(outputs, targets).detach() + outputs.sum(1)) * outputs.sum(1)


@pytest.mark.parametrize("loss", [weighted, strict])
def test_a_loss_that_holds_single_precision_is_computed_in_it(loss):
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(get_loss(loss).per_sample(outputs, targets), loss(outputs, targets))


def learned():
    """Weights of its own, which want gradients, that leave the scores as they are."""
    own = nn.Linear(3, 3, bias=False)
    nn.init.eye_(own.weight)
    return lambda outputs, targets: F.cross_entropy(own(outputs), targets, reduction="none")


@pytest.mark.parametrize("loss", [weighted, strict, learned()])
def test_a_loss_that_holds_single_precision_is_measured(loss):
    """As the same formula that takes any."""

    def flexible(outputs, targets):
        times = torch.tensor([1.0, 2.0, 3.0]) if loss is weighted else torch.ones(3)
        return F.cross_entropy(outputs, targets, reduction="none") * times[targets]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x, y = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(9, 4), torch.arange(9) % 3
        init = {name: p.detach() + 0.3 * torch.randn_like(p) for name, p in net.named_parameters()}
    names = ["hessian_trace", "max_quadratic_form", "noise_stability"]
    found, expected = (
        genbound.evaluate(genbound.Problem(net, init, (x, y), loss=one), names).quantities for one in (loss, flexible)
    )
    for key, side in (("hessian_trace", "value"), ("max_quadratic_form", "lower"), ("max_quadratic_form", "upper")):
        for name, row in found[key]["layers"].items():
            assert row[side] == pytest.approx(expected[key]["layers"][name][side], rel=1e-3)
    for row, other in zip(*(each["noise_stability"]["sigmas"] for each in (found, expected)), strict=True):
        assert row["value"] == pytest.approx(other["value"], rel=0.02)


@pytest.mark.parametrize("loss", [hidden, hidden_slope])
def test_a_loss_in_single_precision_that_hides_a_derivative_is_refused(loss):
    net, x, y = nn.Linear(4, 3), torch.randn(9, 4), torch.arange(9) % 3
    init = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    with pytest.raises(GenboundError, match="derivative of the loss hidden"):
        genbound.evaluate(genbound.Problem(net, init, (x, y), loss=loss), ["hessian_trace"])
