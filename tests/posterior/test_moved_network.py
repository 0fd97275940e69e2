"""A network with its own weights for each sample: against every sample run alone by hand."""

import pytest
import torch
from posterior_nets import mlp
from torch import nn
from torch.func import functional_call, jacrev

import genbound
from genbound.posterior.curvature import measure_curvature
from genbound.posterior.groups import changed_groups
from genbound.posterior.moved_network import MovedNetwork


def noisy(groups, num, seed=0):
    torch.manual_seed(seed)
    return {g.name: g.tuned + 0.2 * torch.randn(num, *g.tuned.shape, dtype=g.tuned.dtype) for g in groups}


def by_hand(problem, batch, weights):
    """Every sample through the user's module, which knows nothing of genbound."""
    rows = []
    for i in range(len(batch)):
        own = {**problem.params, **{name: tensor[i] for name, tensor in weights.items()}}
        rows.append(functional_call(problem.model.eval(), own, (batch.inputs[i : i + 1],))[0])
    return torch.stack(rows)


@pytest.mark.parametrize("vectorised", [True, False])
def test_each_sample_has_its_own_weights(vectorised):
    problem = mlp()
    problem.model.double()
    groups, batch = changed_groups(problem), problem.batch(range(6))
    network = MovedNetwork(problem, groups)
    assert network.vectorised
    network.vectorised = vectorised
    weights = noisy(groups, 6)
    assert torch.allclose(network.outputs(batch.inputs, weights), by_hand(problem, batch, weights), rtol=1e-12)


@pytest.mark.parametrize("vectorised", [True, False])
def test_derivatives_in_every_group(vectorised):
    problem = mlp()
    groups, batch = changed_groups(problem), problem.batch(range(4))
    network = MovedNetwork(problem, groups)
    network.vectorised = vectorised
    tuned = {g.name: g.tuned for g in groups}
    cotangents = torch.randn(4, 2, 3, dtype=torch.float64)
    found, _ = network.pulled_back(batch.inputs, tuned, cotangents)
    for i in range(4):
        outputs = lambda own, i=i: problem.forward({**problem.params, **own}, batch.inputs[i : i + 1])[0]  # noqa: E731
        for name, jacobian in jacrev(outputs)(tuned).items():
            exact = torch.einsum("rk,k...->r...", cotangents[i], jacobian)
            assert torch.allclose(found[name][i], exact, rtol=1e-10)


class Counting(nn.Module):
    """Has no vectorised form: it asks for a number."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x) * (2.0 if float(self.linear.weight.detach().sum()) > 1e9 else 1.0)


def test_a_network_that_cannot_be_vectorised_runs_sample_by_sample():
    torch.manual_seed(0)
    net = Counting()
    init = {name: torch.zeros_like(p) for name, p in net.state_dict().items()}
    x = torch.randn(12, 4)
    problem = genbound.Problem(net, init, (x, torch.arange(12) % 2), dtype=torch.float64)
    groups = changed_groups(problem)
    network = MovedNetwork(problem, groups)
    assert not network.vectorised
    batch, weights = problem.to_device(problem.data.batch(range(5))), noisy(groups, 5)
    problem.model.double()
    assert torch.allclose(network.outputs(batch.inputs, weights), by_hand(problem, batch, weights), rtol=1e-12)


def test_curvature_is_the_dense_gauss_newton_block():
    """Of every tensor, with the output Hessian of cross-entropy written out."""
    problem = mlp(num=15)
    groups = changed_groups(problem)
    network, stream = MovedNetwork(problem, groups), torch.Generator()
    names = [g.name for g in groups]
    full = measure_curvature(problem, network, groups, range(15), names, stream)
    flat = measure_curvature(problem, network, groups, range(15), [], stream)
    for group in groups:
        block = torch.zeros(group.size, group.size, dtype=torch.float64)
        for i in range(15):
            x = problem.to_device(problem.data.batch([i])).inputs
            outputs = lambda w, x=x, g=group: problem.forward({**problem.params, g.name: w}, x)[0]  # noqa: E731
            jacobian = jacrev(outputs)(group.tuned).flatten(1)
            p = outputs(group.tuned).softmax(0)
            block += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / 15
        found = full[group.name]
        rebuilt = found.axes @ torch.diag(torch.as_tensor(found.spectrum.values)) @ found.axes.T
        assert torch.allclose(rebuilt, block, rtol=1e-5, atol=1e-6 * float(block.norm()))
        trace = flat[group.name].spectrum.values @ flat[group.name].spectrum.counts
        assert trace == pytest.approx(float(block.trace()), rel=1e-10)


class Masked(nn.Module):
    """Asks its mask whether it masks anything, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x, mask):
        return self.linear(x if mask.all() else x * mask[..., None]).sum(1)


def test_what_is_the_same_for_all_samples_belongs_to_none():
    """A mask that masks nothing leaves the pass vectorised; with others the same samples run one by one."""
    torch.manual_seed(0)
    net = Masked()
    init = {name: torch.zeros_like(p) for name, p in net.state_dict().items()}
    x, mask = torch.randn(12, 3, 4, dtype=torch.float64), torch.ones(12, 3, dtype=torch.bool)
    mask[8:, 2] = False
    data = [({"x": x, "mask": mask}, torch.arange(12) % 2)]
    problem = genbound.Problem(net, init, data, dtype=torch.float64)
    groups = changed_groups(problem)
    network = MovedNetwork(problem, groups)
    assert network.vectorised
    problem.model.double()
    for places in (range(5), range(6, 11), range(8, 12)):
        batch, weights = problem.to_device(problem.data.batch(places)), noisy(groups, len(places))
        own = [{**problem.params, **{name: tensor[i] for name, tensor in weights.items()}} for i in range(len(places))]
        rows = [functional_call(net, p, (x[[i]], mask[[i]]))[0] for p, i in zip(own, places, strict=True)]
        assert torch.allclose(network.outputs(batch.inputs, weights), torch.stack(rows), rtol=1e-12)


class Failing(nn.Module):
    """Says something about samples that come in a vectorised pass."""

    def __init__(self, said):
        super().__init__()
        self.fc, self.said = nn.Linear(4, 3), said

    def forward(self, x):
        if torch._C._functorch.is_batchedtensor(x):
            raise RuntimeError(self.said)
        return self.fc(x)


@pytest.mark.parametrize(("said", "swallowed"), [
    ("Batching rule not implemented for aten::frobnicate", True),
    ("vmap: It looks like you're calling .item() on a Tensor.", True),
    ("DefaultCPUAllocator: not enough memory", False),
])  # fmt: skip
def test_only_what_has_no_vectorised_form_is_passed_over(said, swallowed):
    torch.manual_seed(0)
    net = Failing(said)
    init = {name: 0.9 * p.detach() for name, p in net.named_parameters()}
    problem = genbound.Problem(net, init, (torch.randn(8, 4), torch.arange(8) % 3))
    groups = changed_groups(problem)
    if swallowed:
        assert not MovedNetwork(problem, groups).vectorised
        return
    with pytest.raises(RuntimeError, match="memory"):
        MovedNetwork(problem, groups)
    net.said = "vmap: no"
    network = MovedNetwork(problem, groups)
    network.vectorised, net.said = True, said
    with pytest.raises(RuntimeError, match="memory"):
        network.outputs(problem.batch(range(3)).inputs, noisy(groups, 3))
