"""Running statistics that moved are coordinates like any other: noisy, and with a curvature."""

import copy

import torch
from torch import nn

import genbound
from genbound.posterior.curvature import measure_curvature
from genbound.posterior.groups import changed_groups
from genbound.posterior.moved_network import MovedNetwork


def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double()
    start = copy.deepcopy(net.state_dict())
    x, y = torch.randn(20, 1, 4, 4).double(), torch.randint(2, (20,))
    net(3 * x + 1)  # training mode: the statistics move
    return genbound.Problem(net, start, (x, y), init_buffers=start, dtype=torch.float64)


def test_each_sample_has_its_own_statistics():
    given = problem()
    groups = changed_groups(given)
    assert {group.name for group in groups} == {"1.running_mean", "1.running_var"}
    network, batch = MovedNetwork(given, groups), given.batch([0, 1, 2])
    noise = {g.name: g.tuned + 0.1 * torch.rand(3, *g.tuned.shape, dtype=torch.float64) for g in groups}
    together = network.outputs(batch.inputs, noise)
    assert network.vectorised
    for i in range(3):
        buffers = {**given.buffers, **{name: tensor[i] for name, tensor in noise.items()}}
        alone = given.forward(given.params, batch.inputs[i : i + 1], buffers)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_the_curvature_is_that_of_finite_differences():
    given = problem()
    groups = changed_groups(given)
    network, every = MovedNetwork(given, groups), list(range(20))
    full = [group.name for group in groups]
    found = measure_curvature(given, network, groups, every, full, torch.Generator())
    batch = given.to_device(given.data.batch(every))
    p = given.forward(given.params, batch.inputs).softmax(1)
    for group in groups:
        columns = []
        for j in range(group.size):
            step = torch.zeros_like(group.tuned)
            step[j] = 1e-5
            sides = [
                given.forward(given.params, batch.inputs, {**given.buffers, group.name: group.tuned + s * step})
                for s in (1, -1)
            ]
            columns.append((sides[0] - sides[1]) / 2e-5)
        jacobian = torch.stack(columns, -1)  # [N, classes, d]
        hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        block = torch.einsum("nki,nkl,nlj->ij", jacobian, hessian, jacobian) / 20
        curvature = found[group.name]
        axes = curvature.axes
        again = axes @ torch.diag(torch.as_tensor(curvature.spectrum.values)) @ axes.T
        torch.testing.assert_close(again, block, rtol=1e-6, atol=1e-9)
