"""A prior that saw some of the training samples: the bound is on the others, and on nothing else."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.errors import GenboundError

NAMES = ["pac_bayes_certificate", "compression_certificate"]
OPTIONS = {"gibbs_error": {"taus": (1.0, 10.0)}, "quantized_error": {"taus": (0.1, 1.0, 10.0)}}


def train(net, x, y, steps=60):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def parts(num=400, flips=False):
    """``(fine-tuned network, start, prior of the first half, x, y)``."""
    torch.manual_seed(0)
    net = nn.Linear(40, 2)
    x = torch.randn(num, 40)
    y = torch.randint(2, (num,)) if flips else (x[:, 0] + 0.5 * torch.randn(num) > 0).long()
    start = copy.deepcopy(net.state_dict())
    train(net, x[: num // 2], y[: num // 2])
    prior = copy.deepcopy(net.state_dict())
    train(net, x, y, 5)
    return net, start, prior, x, y


def rows(problem):
    return genbound.evaluate(problem, NAMES, options=OPTIONS)


def test_a_prior_that_saw_half_makes_certificates_smaller():
    net, start, prior, x, y = parts()
    plain = rows(genbound.Problem(net, start, (x, y)))
    given = rows(genbound.Problem(net, start, (x, y), prior=prior, prior_samples=range(200)))
    for name in NAMES:
        assert given.bounds[name].value < plain.bounds[name].value
        assert "saw 200 other samples; n = 200" in given.bounds[name].note
    assert given.config["prior"] == {"num_samples": 200} and "prior" not in plain.config


def test_a_choice_among_priors_is_paid_for():
    net, start, prior, x, y = parts()
    one, chosen = (
        rows(genbound.Problem(net, start, (x, y), prior=prior, prior_samples=range(200), prior_choices=choices))
        for choices in (1, 1000)
    )
    for quantity, entry in (("gibbs_error", "log_union"), ("quantized_error", "nats")):
        paid = chosen.quantities[quantity][entry] - one.quantities[quantity][entry]
        assert paid == pytest.approx(np.log(1000))
    for name in NAMES:
        assert chosen.bounds[name].value > one.bounds[name].value
    with pytest.raises(GenboundError, match="chosen from 1 or more"):
        genbound.Problem(net, start, (x, y), prior=prior, prior_samples=range(200), prior_choices=-1)


def test_only_the_samples_that_it_did_not_see_count():
    """Labels of the seen half may be anything: nothing that is certified reads them."""
    net, start, prior, x, y = parts()
    other = torch.cat([1 - y[:200], y[200:]])
    found = [
        rows(genbound.Problem(net, start, (x, labels), prior=prior, prior_samples=range(200))).quantities
        for labels in (y, other)
    ]
    for key in ("error", "kl", "num_data", "num_prior"):
        assert found[0]["gibbs_error"][key] == pytest.approx(found[1]["gibbs_error"][key])
    assert found[0]["quantized_error"]["error"] == found[1]["quantized_error"]["error"]
    assert found[0]["quantized_error"]["num_data"] == 200


def test_the_divergence_is_from_the_prior():
    net, start, prior, x, y = parts()
    found = rows(genbound.Problem(net, start, (x, y), prior=prior, prior_samples=range(200))).quantities["gibbs_error"]
    for name, group in found["groups"].items():
        moved = net.state_dict()[name] - prior[name]
        assert group["displacement"] == pytest.approx(float(moved.norm()), rel=1e-5)


def test_coin_flips_that_the_prior_learned_are_not_certified():
    """And they are where nobody says what the prior saw: then there is no certificate at all."""
    net, start, prior, x, y = parts(60, flips=True)
    honest = rows(genbound.Problem(net, start, (x, y), prior=prior, prior_samples=range(30)))
    assert all(honest.bounds[name].value >= 0.5 for name in NAMES)
    silent = rows(genbound.Problem(net, start, (x, y), prior=prior))
    for name in NAMES:
        assert silent.bounds[name].value is None and "--prior-samples" in silent.bounds[name].note


def test_nothing_where_the_prior_saw_nearly_all_or_is_the_network_itself():
    net, start, prior, x, y = parts()
    nearly = rows(genbound.Problem(net, start, (x, y), prior=prior, prior_samples=range(395)))
    same = rows(genbound.Problem(net, start, (x, y), prior=net.state_dict(), prior_samples=range(200)))
    for name in NAMES:
        assert "that the prior did not see, there are 5" in nearly.bounds[name].note
        assert "no weight differs from the prior" in same.bounds[name].note


def test_what_is_no_prior_is_refused():
    net, start, prior, x, y = parts()
    for wrong, words in (
        ({"prior": {"weight": prior["weight"]}, "prior_samples": []}, "bias is not in it"),
        ({"prior": {**prior, "bias": torch.zeros(3)}, "prior_samples": []}, r"shape \(3,\)"),
        ({"prior": prior, "prior_samples": [400]}, "number 400"),
        ({"prior": prior, "prior_samples": [-1]}, "number -1"),
        ({"prior_samples": [1]}, "no prior"),
    ):
        with pytest.raises(GenboundError, match=words):
            genbound.Problem(net, start, (x, y), **wrong)


@pytest.mark.parametrize("suffix", ["txt", "npy"])
def test_from_files(tmp_path, suffix):
    net, start, prior, x, y = parts()
    for name, state in (("tuned", net.state_dict()), ("start", start), ("prior", prior)):
        torch.save(state, tmp_path / f"{name}.pt")
    np.savez(tmp_path / "train.npz", x=x.numpy(), y=y.numpy())
    file = tmp_path / f"seen.{suffix}"
    np.save(file, np.arange(200)) if suffix == "npy" else file.write_text("\n".join(map(str, range(200))))
    common = {"model": nn.Linear(40, 2), "data": f"npz:{tmp_path / 'train.npz'}"}
    files = (tmp_path / "tuned.pt", tmp_path / "start.pt")
    problem = genbound.load(*files, prior=tmp_path / "prior.pt", prior_samples=file, **common)
    torch.testing.assert_close(problem.prior.params["weight"], prior["weight"])
    assert problem.prior.samples == frozenset(range(200))
    assert problem.digest() != genbound.load(*files, **common).digest()
    with pytest.raises(GenboundError, match="without --prior"):
        genbound.load(*files, prior_samples=file, **common)
    file.write_bytes(b"one\n")
    with pytest.raises(GenboundError, match="does not name samples"):
        genbound.load(*files, prior=tmp_path / "prior.pt", prior_samples=file, **common)
