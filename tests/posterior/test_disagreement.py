"""From a noisy or quantised network to the fine-tuned one, by inputs without labels."""

import math

import numpy as np
import pytest
import torch
from posterior_nets import moved
from safetensors.torch import load_file
from torch import nn

import genbound
from genbound.bounds.certificates import of_the_network
from genbound.data.samples import TensorSamples, same_inputs
from genbound.errors import GenboundError
from genbound.estimators.kl_inverse import kl_inverse
from genbound.figures.certificate import parts_of
from genbound.formatting import rounded_up

NAMES = ["pac_bayes_certificate", "compression_certificate"]


def problem(net, init, num=300, seed=0, **arguments):
    torch.manual_seed(seed)
    x = torch.randn(num, 4)
    with torch.no_grad():
        y = net(x).argmax(1)
    return genbound.Problem(net, init, (x, y), **arguments)


def networks(classes):
    torch.manual_seed(1)
    return moved(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes)), by=0.5)


def test_with_a_pencil():
    """0.2 at 0.045 and kl^-1(0.1, ln(200) / 500) at 0.005."""
    seen = []

    def certified(delta):
        seen.append(delta)
        return 0.2

    form = of_the_network({"disagreement": 0.1, "num_unlabelled": 500}, 0.05, certified)["network"]
    assert 10 ** form["log10"] == pytest.approx(0.2 + kl_inverse(0.1, math.log(200) / 500))
    assert seen == [pytest.approx(0.045)] and "delta = 0.045 + 0.005" in form["note"]
    assert of_the_network({}, 0.05, certified) == {}


def test_the_quantised_networks_disagreement_is_counted(tmp_path):
    net, init = networks(3)
    inputs = torch.randn(200, 4)
    labels = torch.zeros(200, dtype=torch.long)  # not looked at
    results = genbound.evaluate(problem(net, init, unlabelled=(inputs, labels)), NAMES)
    results.save(tmp_path)
    with torch.no_grad():
        own = net(inputs).argmax(1)
        net.load_state_dict(load_file(tmp_path / "quantized_error" / "model.safetensors"))
        differs = (net(inputs).argmax(1) != own).double().mean()
    summary = results.quantities["quantized_error"]
    assert summary["disagreement"] == pytest.approx(float(differs)) and summary["num_unlabelled"] == 200
    for name in NAMES:
        row = results.bounds[name]
        limit = 10 ** row["forms"]["network"]["log10"]
        assert limit > row["value"]
        assert row["note"].endswith(f"the fine-tuned network itself: at most {rounded_up(limit)} (form network)")


def test_the_closed_form_of_a_head_agrees_with_draws(monkeypatch):
    torch.manual_seed(2)
    net, init = moved(nn.Linear(4, 2), by=0.5)
    unlabelled = (torch.randn(3000, 4), torch.zeros(3000, dtype=torch.long))
    given = problem(net, init, unlabelled=unlabelled)
    exact = genbound.measure(given, "gibbs_error")
    from genbound.quantities import gibbs_error

    monkeypatch.setattr(gibbs_error, "find_linear_head", lambda problem, groups: None)
    drawn = genbound.measure(given, "gibbs_error", taus=(exact["tau"],))
    p = exact["disagreement"]
    assert 0.001 < p < 0.5 and exact["num_unlabelled"] == drawn["num_unlabelled"] == 3000
    assert abs(drawn["disagreement"] - p) < 4 * math.sqrt(p * (1 - p) / 3000)


def test_labels_of_the_unlabelled_are_not_looked_at():
    net, init = networks(2)
    inputs = torch.randn(100, 4)
    found = [
        genbound.measure(problem(net, init, unlabelled=(inputs, torch.full((100,), label))), "quantized_error")
        for label in (0, 1)
    ]
    assert found[0] == found[1]


def test_training_samples_are_no_unlabelled_ones():
    net, init = networks(2)
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    with torch.no_grad():
        y = net(x).argmax(1)
    with pytest.raises(GenboundError, match="are the training samples"):
        problem(net, init, unlabelled=(x, y))
    with pytest.raises(GenboundError, match="are the training samples"):  # under other labels, too
        problem(net, init, unlabelled=(x, 1 - y))


def test_training_samples_among_the_unlabelled_are_counted():
    net, init = networks(2)
    given = problem(net, init)
    more = torch.randn(100, 4)
    for seen in (0, 60, 300):
        x = torch.cat([more, given.data.inputs[:seen]]) if seen < 300 else given.data.inputs.flip(0)
        labels = torch.zeros(len(x), dtype=torch.long)
        results = genbound.evaluate(problem(net, init, unlabelled=(x, labels)), NAMES)
        for name in NAMES:
            form = results.bounds[name]["forms"]["network"]
            violated = f"assumption violated: {seen} of {100 + seen} unlabelled inputs are those of training samples"
            assert form["note"].startswith(violated if seen else "bounds") or seen == 300
            assert (form["log10"] is None) == (seen == 300)
            note = results.bounds[name]["note"]  # the row itself does not rest on them
            assert ("form network: " in note) == bool(seen) and "violated" not in note
        assert len(parts_of(results)) == (2 if seen == 300 else 4)


def test_unlabelled_samples_are_read_up_to_the_first_that_is_another():
    class Read(TensorSamples):
        read = ()

        def batch(self, indices):
            self.read = (*self.read, *indices)
            return super().batch(indices)

    x, y = torch.randn(200, 4), torch.zeros(200, dtype=torch.long)
    one, other = Read(x, y), Read(torch.cat([x[:3], x[3:] + 1]), y)
    assert not same_inputs(one, other) and one.read == other.read == (0, 1, 2, 3)
    assert not same_inputs(one, Read(x.double(), y)) and not same_inputs(one, Read(x[:199], y[:199]))
    assert same_inputs(one, Read(x.clone(), 1 - y))


def test_from_files(tmp_path):
    net, init = networks(2)
    torch.save(net.state_dict(), tmp_path / "tuned.pt")
    torch.save(init, tmp_path / "start.pt")
    for name, seed in (("train", 0), ("more", 1)):
        torch.manual_seed(seed)
        np.savez(tmp_path / f"{name}.npz", x=torch.randn(60, 4).numpy(), y=np.arange(60) % 2)
    given = genbound.load(
        tmp_path / "tuned.pt", tmp_path / "start.pt", model=networks(2)[0], data=f"npz:{tmp_path / 'train.npz'}",
        unlabelled=f"npz:{tmp_path / 'more.npz'}",
    )  # fmt: skip
    assert len(given.unlabelled) == 60 and "num_unlabelled" in genbound.measure(given, "quantized_error")
