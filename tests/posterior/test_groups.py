"""What is noisy: every coordinate that moved, and no certificate where that is not known."""

import copy

import pytest
import torch
from posterior_nets import head, mlp
from torch import nn

import genbound
from genbound.posterior.groups import changed_groups, why_no_posterior


def test_every_tensor_that_moved_is_a_group():
    """Biases and norm layers too, of any shape."""
    problem = mlp()
    groups = {group.name: group for group in changed_groups(problem)}
    assert set(groups) == {"0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"}
    for name, group in groups.items():
        square = (problem.params[name] - problem.init[name]).square().sum()
        assert group.square == pytest.approx(float(square), rel=1e-12) and group.size == problem.params[name].numel()
    assert {group.name for group in changed_groups(head())} == {"3.weight", "3.bias"}


def batch_norm(init_buffers=True, move=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    init = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net[0].weight += 0.1
        if move:
            net[1].running_mean += 0.5
    given = {"init_buffers": init} if init_buffers else {}
    return genbound.Problem(net, init, (torch.randn(20, 3), torch.randint(2, (20,))), **given)


def test_running_statistics_that_moved_are_coordinates():
    groups = {group.name: group.is_buffer for group in changed_groups(batch_norm())}
    assert groups == {"0.weight": False, "1.running_mean": True}
    assert set(g.name for g in changed_groups(batch_norm(move=False))) == {"0.weight"}


def test_no_prior_at_tuned_values():
    """Where the start's running statistics are not known, the tuned ones stand in: that is no prior."""
    assert "start of buffer 1.running_mean and 1 more is not known" in why_no_posterior(batch_norm(init_buffers=False))
    assert why_no_posterior(batch_norm()) is None


def test_the_whole_training_set_or_nothing():
    assert "40 samples are given and n is 90" in why_no_posterior(mlp(num_data=90))
    assert "at least 8" in why_no_posterior(mlp(num=7))
    assert why_no_posterior(mlp()) is None and why_no_posterior(mlp(num_samples=10)) is None


def test_nothing_moved():
    assert "nothing was fine-tuned" in why_no_posterior(mlp(only="no such name"))
