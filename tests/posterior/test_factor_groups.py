"""What an adapter moved, as the two factors that are noisy: against the weight that they make, by hand."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import genbound
from genbound.posterior.curvature import measure_curvature
from genbound.posterior.groups import changed_groups, factor_groups
from genbound.posterior.moved_network import MovedNetwork

NAME = "0.weight"


def adapted(prior=None, num=40, seed=0, **arguments):
    """A network whose first weight an adapter of rank 2 moved, and whose head moved in full.

    ``prior``: an adapter that saw nothing (``start``: the right factor as it is, the left one zero), or a full network.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    init = {name: p.detach().clone() for name, p in net.named_parameters()}
    left, right = torch.randn(8, 2).double(), 0.2 * torch.randn(2, 6).double()
    with torch.no_grad():
        net[0].weight += left @ right
        net[2].weight += 0.3 * torch.randn(3, 8)
    if prior is not None:
        arguments |= {"prior": init, "prior_samples": []}
    if prior in ("start", "moved"):
        began = right if prior == "start" else right + 0.1 * torch.randn(2, 6).double()
        arguments["prior_factors"] = {NAME: (torch.zeros_like(left), began)}
    data = (torch.randn(num, 6, dtype=torch.float64), torch.randint(3, (num,)))
    return genbound.Problem(net, init, data, factors={NAME: (left, right)}, **arguments), left, right


def test_without_an_adapter_as_prior_the_balanced_factors_count_from_zero():
    problem, left, right = adapted()
    groups = {g.name: g for g in factor_groups(problem, changed_groups(problem))}
    assert set(groups) == {f"{NAME}.left", f"{NAME}.right", "2.weight"}
    a, b = groups[f"{NAME}.left"], groups[f"{NAME}.right"]
    assert a.size == 16 and b.size == 12 and torch.allclose(a.tuned @ b.tuned, left @ right, rtol=1e-12)
    # Both have the sum of the singular values as their squared length: no other factors add up to less.
    nuclear = float(torch.linalg.matrix_norm(left @ right, "nuc"))
    assert a.square == pytest.approx(nuclear) and b.square == pytest.approx(nuclear)
    assert a.square + b.square < float(left.square().sum() + right.square().sum())


def test_a_factor_that_is_where_training_began_is_a_constant():
    problem, left, right = adapted("start")
    groups = {g.name: g for g in factor_groups(problem, changed_groups(problem))}
    assert set(groups) == {f"{NAME}.left", "2.weight"}
    assert groups[f"{NAME}.left"].square == pytest.approx(float(left.square().sum()))
    network = MovedNetwork(problem, list(groups.values()))
    batch, noisy = problem.batch(range(3)), left + torch.randn(3, 8, 2).double()
    found = network.outputs(batch.inputs, {f"{NAME}.left": noisy})
    for i in range(3):
        own = {**problem.params, NAME: problem.init[NAME] + noisy[i] @ right}
        assert torch.allclose(found[i], functional_call(problem.model, own, (batch.inputs[[i]],))[0], rtol=1e-12)


def test_a_prior_without_factors_has_the_whole_weight():
    problem, *_ = adapted("full")
    assert {g.name for g in factor_groups(problem, changed_groups(problem))} == {NAME, "2.weight"}
    (remark,) = [remark for remark in problem.remarks if "prior" in remark]
    assert f"the prior is no adapter with {NAME}, which one moved here" in remark and "as its training began" in remark
    assert not any("prior" in remark for p in (None, "start", "moved") for remark in adapted(p)[0].remarks)


@pytest.mark.parametrize("vectorised", [True, False])
def test_each_sample_has_its_own_factors(vectorised):
    problem, *_ = adapted()
    groups = factor_groups(problem, changed_groups(problem))
    network, batch = MovedNetwork(problem, groups), problem.batch(range(5))
    assert network.vectorised
    network.vectorised = vectorised
    moved = {g.name: g.tuned + 0.3 * torch.randn(5, *g.tuned.shape, dtype=torch.float64) for g in groups}
    found = network.outputs(batch.inputs, moved)
    for i in range(5):
        weight = problem.init[NAME] + moved[f"{NAME}.left"][i] @ moved[f"{NAME}.right"][i]
        own = {**problem.params, NAME: weight, "2.weight": moved["2.weight"][i]}
        assert torch.allclose(found[i], functional_call(problem.model, own, (batch.inputs[[i]],))[0], rtol=1e-12)


def test_the_curvature_is_that_of_the_factor():
    problem, *_ = adapted(num=10)
    groups = factor_groups(problem, changed_groups(problem))
    names = [g.name for g in groups]
    network = MovedNetwork(problem, groups)
    found = measure_curvature(problem, network, groups, range(10), names, torch.Generator())[f"{NAME}.right"]
    left, right = (next(g.tuned for g in groups if g.name == f"{NAME}.{side}") for side in ("left", "right"))
    dense = torch.zeros(12, 12, dtype=torch.float64)
    for i in range(10):
        x = problem.data.batch([i]).inputs
        outputs = lambda r, x=x: problem.forward({**problem.params, NAME: problem.init[NAME] + left @ r}, x)[0]  # noqa: E731
        jacobian, p = jacrev(outputs)(right).flatten(1), outputs(right).softmax(0)
        dense += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / 10
    built = (found.axes * torch.as_tensor(found.spectrum.values)) @ found.axes.T
    assert torch.allclose(built, dense, atol=1e-5 * float(dense.abs().max()))


@pytest.mark.parametrize("prior", ["start", "moved"])
def test_the_quantised_network_is_made_of_quantised_factors(prior, monkeypatch):
    """Its weight is init + left right, with a right factor that is the prior's where that did not move."""
    monkeypatch.setattr("genbound.quantities.quantized_error.gridded", lambda *_: [])  # one coarse grid for all of them
    problem, left, right = adapted(prior, num=2000)
    options = {"taus": (1e-4,)}
    results = genbound.evaluate(problem, ["quantized_error"], options={"quantized_error": options})
    found, made = results.quantities["quantized_error"], results.networks["quantized_error"]
    names = {f"{NAME}.left", "2.weight"} | ({f"{NAME}.right"} if prior == "moved" else set())
    assert set(found["groups"]) == names and found["num_prior"] == 0
    moved = torch.as_tensor(made[NAME]) - problem.init[NAME]
    assert torch.linalg.matrix_rank(moved) == 2 and 0 < float((moved - left @ right).norm()) < 0.2 * float(moved.norm())
    if prior == "start":  # whole steps of the left factor, by the right one as it is
        step = found["groups"][f"{NAME}.left"]["step"]
        whole = moved @ torch.linalg.pinv(right) / step
        assert found["groups"][f"{NAME}.left"]["form"] == "grid"
        assert torch.allclose(whole, whole.round(), atol=1e-6) and whole.abs().max() > 0
    own = {**problem.params, **{n: torch.as_tensor(t) for n, t in made.items()}}
    wrong = (
        problem.forward(own, problem.data.batch(range(2000)).inputs).argmax(1)
        != problem.data.batch(range(2000)).targets
    )
    assert found["error"] == pytest.approx(float(wrong.double().mean()))


def test_the_certificate_is_of_the_factors():
    """All coordinates are there, and the trials are those of the network that the draws make by hand."""
    problem, *_ = adapted("start")
    found = genbound.evaluate(problem, ["gibbs_error"]).quantities["gibbs_error"]
    assert found["num_coordinates"] == 16 + 24 and found["num_prior"] == 0 and found["num_data"] == 40
    assert set(found["groups"]) == {f"{NAME}.left", "2.weight"}
    whole = genbound.evaluate(adapted()[0], ["gibbs_error"]).quantities["gibbs_error"]
    assert whole["num_coordinates"] == 16 + 12 + 24 and whole["log_union"] > found["log_union"]
