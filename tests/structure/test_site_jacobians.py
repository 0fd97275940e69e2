"""Jacobians between the sites of a pass, beside those that are formed densely."""

import pytest
import torch
from torch import nn

from genbound.network.problem import Problem
from genbound.structure.site_jacobians import SitePass, sample_norms

D = torch.float64


class Branched(nn.Module):
    """Two first layers, of which one does not depend on the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)

    def forward(self, x):
        return self.c(torch.cat([self.a(x).tanh(), self.b(x).relu()], 1))


@pytest.fixture
def found():
    torch.manual_seed(0)
    model = Branched().to(D)
    init = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    problem = Problem(model, init, (torch.randn(4, 3, dtype=D), torch.arange(4) % 2), batch_size=4)
    return model, SitePass(problem, ["a.weight", "b.weight", "c.weight"], [0, 1, 2, 3])


def dense(model, run, i, sample):
    """Jacobian of the last layer's output in that of layer i, for one sample."""
    x = run.problem.batch([sample]).inputs
    x = x[0] if isinstance(x, tuple) else x
    outputs = [model.a(x).detach(), model.b(x).detach()]

    def onwards(z):
        own = [z if k == i else other for k, other in enumerate(outputs)]
        return model.c(torch.cat([own[0].tanh(), own[1].relu()], 1))

    return torch.autograd.functional.jacobian(onwards, outputs[i])[0, :, 0]


def test_sites_outputs_and_norms(found):
    _, run = found
    assert [site.name for site in run.sites] == ["a.weight", "b.weight", "c.weight"]
    for output, norms in zip(run.outputs, run.norms, strict=True):
        assert norms == pytest.approx(output.detach().norm(dim=1).numpy())
        assert sample_norms(2 * output.detach(), 4) == pytest.approx(2 * norms)


@pytest.mark.parametrize("i", [0, 1])
def test_products_are_those_with_the_dense_jacobian(found, i):
    model, run = found
    u = torch.randn(run.outputs[i].shape, dtype=D)
    w = torch.randn(run.outputs[2].shape, dtype=D)
    pushed, (pulled,) = run.push(i, u)[-1], run.pull(2, w, [i])
    for n in range(4):
        jacobian = dense(model, run, i, n)
        assert torch.allclose(pushed[n], jacobian @ u[n], atol=1e-12)
        assert torch.allclose(pulled[n], jacobian.T @ w[n], atol=1e-12)


def test_layers_that_do_not_depend_on_one_another(found):
    _, run = found
    assert run.push(0, run.outputs[0])[0] is None
    assert run.push(2, run.outputs[2]) == []
    assert run.upstream(1) == [] and run.upstream(2) == [0, 1]


def test_noise_moves_the_outputs_that_follow(found):
    model, run = found
    noise = torch.randn(run.outputs[0].shape, dtype=D)
    beside, moved = run.moved(0, noise)
    assert torch.equal(beside, run.outputs[1].detach())
    wanted = model.c(torch.cat([(run.outputs[0] + noise).tanh(), run.outputs[1].relu()], 1))
    assert torch.allclose(moved, wanted.detach(), atol=1e-12)
