"""The closed form of a linear head: against a flood of draws, and no head where there is none."""

import numpy as np
import pytest
import torch
from posterior_nets import head, mlp
from torch import nn

import genbound
from genbound.posterior.curvature import measure_curvature
from genbound.posterior.gaussian import best_width
from genbound.posterior.groups import changed_groups
from genbound.posterior.linear_head import find_linear_head
from genbound.posterior.moved_network import MovedNetwork
from genbound.posterior.noise import Posterior


def posterior_of(problem, full, scale=10.0):
    groups = changed_groups(problem)
    network = MovedNetwork(problem, groups)
    names = [g.name for g in groups] if full else []
    indices = range(len(problem.data))
    curvatures = measure_curvature(problem, network, groups, indices, names, torch.Generator())
    widths = {g.name: best_width(g.square, curvatures[g.name].spectrum, scale) for g in groups}
    return network, Posterior.of(groups, curvatures, widths)


@pytest.mark.parametrize("full", [True, False])
def test_probability_of_an_error_is_the_share_of_wrong_draws(full):
    problem = head(num=12)
    network, posterior = posterior_of(problem, full)
    batch = problem.to_device(problem.data.batch(range(12)))
    exact = find_linear_head(problem, posterior.groups).error_probability(batch, posterior).numpy()
    draws, wrong = 4000, np.zeros(12)
    for start in range(0, draws, 500):
        for i in range(12):
            weights = posterior.draw(0, [("test", start, j, i) for j in range(500)])
            repeated = problem.data.batch([i] * 500)
            outputs = network.outputs(problem.to_device(repeated).inputs, weights)
            wrong[i] += float((outputs.argmax(1) != repeated.targets).sum())
    errors = np.sqrt(np.maximum(exact * (1 - exact), 1e-6) / draws)
    assert np.abs(wrong / draws - exact).max() / errors.max() < 5 and (np.abs(wrong / draws - exact) < 5 * errors).all()
    assert 0.02 < exact.mean() < 0.98


@pytest.mark.parametrize("full", [True, False])
def test_draws_have_the_covariance_that_the_divergence_counts(full):
    """The sample covariance of 20,000 draws, and its divergence from the prior."""
    _, posterior = posterior_of(head(num=12), full)
    group = posterior.groups[0]
    draws = posterior.draw(3, [("covariance", i) for i in range(20_000)])[group.name].flatten(1)
    centred = draws - group.tuned.flatten()
    found = centred.T @ centred / len(draws)
    exact = posterior.covariance_action(group.name, torch.eye(group.size, dtype=torch.float64))
    assert torch.allclose(found, exact, atol=0.06 * float(exact.diagonal().max()))
    prior = posterior.widths[group.name].prior
    kl = 0.5 * (
        group.square / prior**2
        + exact.trace() / prior**2
        - group.size
        - torch.logdet(exact)
        + group.size * 2 * np.log(prior)
    )
    assert posterior.widths[group.name].kl == pytest.approx(float(kl), rel=1e-9)


def test_no_head():
    assert find_linear_head(mlp(2), changed_groups(mlp(2))) is None  # more than the last layer moved

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return 2 * self.linear(x)  # the scores are not the layer's own

    torch.manual_seed(0)
    net = Scaled()
    init = {name: torch.zeros_like(p) for name, p in net.state_dict().items()}
    problem = genbound.Problem(net, init, (torch.randn(10, 4), torch.arange(10) % 2))
    assert find_linear_head(problem, changed_groups(problem)) is None


def test_a_head_whose_weight_alone_moved():
    problem = mlp(2, only="3.weight")
    found = find_linear_head(problem, changed_groups(problem))
    assert (found.weight, found.bias) == ("3.weight", "")
    _, posterior = posterior_of(problem, True)
    batch = problem.to_device(problem.data.batch(range(20)))
    assert ((0 < found.error_probability(batch, posterior)) & (found.error_probability(batch, posterior) < 1)).all()


def test_a_tie_that_no_noise_breaks_is_no_half():
    """Samples without features have equal scores, whatever the weight: the first class is the answer, every time."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    init = {name: p.clone() for name, p in net.state_dict().items()}
    with torch.no_grad():
        net[2].weight += 0.3
    problem = genbound.Problem(net, init, (torch.randn(40, 4), (torch.arange(40) < 30).long()))
    found = genbound.evaluate(problem, ["gibbs_error", "losses"]).quantities
    assert found["gibbs_error"]["exact"] and found["losses"]["train_error"] == found["gibbs_error"]["error"] == 0.75
