"""The Gibbs error: exact against drawn, from fresh draws, of everything that moved."""

import numpy as np
import pytest
import torch
from multiplications import Multiplications
from posterior_nets import head, mlp
from torch import nn

import genbound
from genbound.errors import GenboundError
from genbound.evaluation.selection import get_options
from genbound.posterior.moved_network import worst_if_not_finite
from genbound.quantities import QUANTITIES, gibbs_error


def found(problem, seed=0, **options):
    return genbound.evaluate(problem, ["gibbs_error"], seed, options={"gibbs_error": options}).quantities["gibbs_error"]


def test_the_closed_form_is_what_draws_find(monkeypatch):
    """20 passes over 60 samples against the exact Gibbs error of the same posterior."""
    exact = found(head(), taus=(1.0,))
    monkeypatch.setattr(gibbs_error, "find_linear_head", lambda *_: None)
    drawn = found(head(), taus=(1.0,), cost=1e-9, max_passes=40)
    assert exact["exact"] and exact["error_sem"] == 0 and exact["num_trials"] == 0
    assert not drawn["exact"] and drawn["num_trials"] == 2400 and drawn["kl"] == pytest.approx(exact["kl"], rel=1e-9)
    assert abs(drawn["error"] - exact["error"]) < 4 * drawn["error_sem"]


def test_trials_are_what_the_same_draws_give_by_hand():
    """Every trial again through the user's module, one sample and one noisy copy of the weights at a time."""
    problem = mlp(num=20)
    measured = gibbs_error._Gibbs(problem, _context(problem, taus=(1.0,)))
    _, posterior, _ = measured._best()
    problem.model.double()
    wrong = 0
    for i in range(20):
        weights = posterior.draw(0, [("gibbs_error", "final", 0, i)])
        own = {**problem.params, **{name: tensor[0] for name, tensor in weights.items()}}
        batch = problem.to_device(problem.data.batch([i]))
        wrong += int(torch.func.functional_call(problem.model, own, (batch.inputs,)).argmax() != batch.targets)
    assert measured._trials(posterior, 1)["error"] == wrong
    # An own draw for every sample and every pass.
    draws = [posterior.draw(0, [("gibbs_error", "final", p, i)])["0.weight"] for p in range(2) for i in range(2)]
    assert all(not torch.equal(a, b) for k, a in enumerate(draws) for b in draws[:k])


class _Plain:
    def __init__(self, options):
        self.seed, self.options = 0, options

    def map(self, stage, items, function):
        return [function(item) for item in items]


def _context(problem, **options):
    from genbound.quantities.catalogue.gibbs_error import GibbsErrorOptions

    return _Plain(GibbsErrorOptions(**options))


def test_final_draws_are_not_those_of_the_pilot():
    """What chose the posterior may not be counted again: the streams have other names."""
    problem = mlp(num=30)
    measured = gibbs_error._Gibbs(problem, _context(problem, taus=(1.0,)))
    seen = []
    _, posterior, _ = measured._best()
    original = posterior.draw
    object.__setattr__(posterior, "draw", lambda seed, keys: (seen.extend(keys), original(seed, keys))[1])
    measured._pilot(posterior, 60)
    pilot, final = set(seen), []
    seen.clear()
    measured._trials(posterior, 2)
    final = list(seen)
    assert len(final) == len(set(final)) == 60 and not pilot & set(final)


def test_same_seed_same_number_whatever_the_batch():
    a, b, c = (found(mlp(num=40, batch_size=size), seed) for size, seed in ((16, 0), (3, 0), (16, 1)))
    assert a["error"] == b["error"] and a["kl"] == pytest.approx(b["kl"], rel=1e-6)
    assert a["error"] != c["error"]


def test_every_coordinate_counts():
    whole = found(mlp())
    assert whole["num_coordinates"] == sum(p.numel() for p in mlp().params.values()) and whole["num_groups"] == 6
    assert whole["kl"] == pytest.approx(sum(row["kl"] for row in whole["groups"].values()), rel=1e-9)


def test_a_bounded_loss_has_a_gibbs_loss_too():
    result = found(mlp(loss_range="bounded:0.01"))
    assert 0 < result["loss"] < 1 and result["loss_range"] == pytest.approx(-np.log(0.01))
    assert found(mlp())["loss"] is None
    exact = found(head(loss_range="bounded:0.01"))
    assert exact["exact"] and exact["num_trials"] > 0 and 0 < exact["loss"] < 1


def test_a_noisy_network_without_a_number_counts_as_wrong():
    """A running variance whose noise takes it below zero gives NaN."""
    outputs = torch.tensor([[0.1, 0.9], [float("nan"), 0.0], [float("inf"), 0.0]])
    assert worst_if_not_finite(torch.zeros(3), outputs, 1.0).tolist() == [0, 1, 1]


def test_a_loss_that_is_no_number_under_noise_counts_as_the_worst():
    """The logarithm of a rate, which is positive at the fine-tuned weights and not at all of those with noise."""

    def of_logarithms(outputs, targets):
        return (outputs.squeeze(-1).log() - targets.log()).square()

    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    init = {name: p.clone() for name, p in net.state_dict().items()}
    with torch.no_grad():
        net.weight.mul_(0.1)
        net.bias.fill_(2.0)
    data = (torch.randn(60, 4), torch.rand(60) + 1.5)
    result = found(genbound.Problem(net, init, data, loss=of_logarithms, loss_range="clip:2"), taus=(100.0,))
    assert result["error"] is None and 0.05 < result["loss"] <= 1


def test_regression_without_a_range_has_none():
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    init = {name: torch.zeros_like(p) for name, p in net.state_dict().items()}
    problem = genbound.Problem(net, init, (torch.randn(20, 3), torch.randn(20, 1)), "squared_error")
    assert found(problem)["reason"] == "the loss has neither a 0-1 error nor a range"


def test_too_many_numbers_are_refused_with_the_mend():
    reason = found(mlp(), most_normals=100.0)["reason"]
    assert "--set gibbs_error.most_normals=" in reason
    assert found(mlp(), covariance="tensor")["groups"]["0.weight"]["full"] is False
    assert found(mlp())["groups"]["0.weight"]["full"] is True
    for wrong in ({"taus": ()}, {"taus": (0.0,)}, {"max_passes": 0}, {"covariance": "diagonal"}):
        with pytest.raises(GenboundError):
            found(mlp(), **wrong)


def test_expects_the_noisy_passes_that_are_made(monkeypatch):
    """Samples of the pilots and trials of a run, against what the forecast counts with."""
    options = {"num_pilot": 40, "max_passes": 30, "covariance": "tensor"}
    drawn = []
    draw = gibbs_error._Gibbs._draw
    monkeypatch.setattr(
        gibbs_error._Gibbs, "_draw", lambda self, q, some, key: drawn.append(len(some)) or draw(self, q, some, key)
    )
    problem = mlp(num=400)
    found(problem, **options)
    monkeypatch.setattr(gibbs_error, "measure_curvature", None)  # nothing is measured by the forecast
    quantity = QUANTITIES["gibbs_error"]
    expected = quantity.gradients(problem, get_options("gibbs_error", options)) * problem.num_samples
    curvature = 400 * (1 + 2 / 3 * problem.num_outputs)
    assert sum(drawn) / 2 < (expected - curvature) / gibbs_error.NOISY_PASS < 2 * sum(drawn)


def test_expects_what_whole_covariances_take():
    """Which is most of a small network's multiplications."""
    problem = mlp(num=60)
    with Multiplications() as unit:
        tape = problem.tape(range(problem.num_samples))
        torch.autograd.grad(tape.losses.sum(), list(tape.weights.values()))
    with Multiplications() as counted:
        found(problem)
    quantity = QUANTITIES["gibbs_error"]
    whole, one = (
        quantity.gradients(problem, get_options("gibbs_error", {"covariance": kind})) for kind in ("full", "tensor")
    )
    assert whole > 2 * one
    assert counted.total / unit.total == pytest.approx(whole, rel=0.5)


def test_expects_of_a_head_what_its_features_take():
    problem = head(num=60)
    expected = QUANTITIES["gibbs_error"].gradients(problem, get_options("gibbs_error", {}))
    assert expected == pytest.approx((13 / 2 * 60 + 60 + 2 * 60) / 3 / 60)
