"""The compression certificate: by hand, and over many training samples of coin flips.

Labels are fair coins, so the true error of every classifier is one half. A certificate below one half is wrong; it may
be in a fraction delta of the samples.
"""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genbound
from genbound.bounds import BOUNDS, Evidence
from genbound.bounds.langford2005occam import occam
from genbound.estimators.kl_inverse import binary_kl
from genbound.quantities import quantized_error

QUANTIZED = {
    "error": 0.2, "right_or_wrong": True, "loss": None, "loss_range": None, "nats": 30.0, "num_data": 100,
    "num_groups": 2,
}  # fmt: skip


def row(changes=(), **more):
    quantities = {"quantized_error": QUANTIZED | dict(changes), "losses": {"constant_error": 0.5}}
    evidence = Evidence(**{"num_data": 100, "loss_range": 2.0, "quantities": quantities, "delta": 0.05, **more})
    return BOUNDS["compression_certificate"].evaluate(evidence)


def test_with_exact_arithmetic():
    """20 of 100 wrong at the level 0.05 e^-30: the tail on both sides of the value, in fractions."""
    value = row()["value"]
    level = math.log(0.05) - 30

    def tail(p):
        p = Fraction(p)
        total = sum(math.comb(100, k) * p**k * (1 - p) ** (100 - k) for k in range(21))
        return math.log(total.numerator) - math.log(total.denominator)

    assert tail(value * (1 - 1e-9)) > level > tail(value * (1 + 1e-9))
    assert value == occam(0.2, 100, 30.0, 0.05)


def test_fractions_have_the_bound_of_chernoff():
    """kl(0.2, p) = (30 + ln 20) / 100, larger than the exact tail's."""
    value = row({"right_or_wrong": False})["value"]
    assert binary_kl(0.2, value) == pytest.approx((30 + math.log(20)) / 100, rel=1e-9)
    assert value > row()["value"]
    loss = row({"loss": 0.2, "loss_range": 4.6})["forms"]["bounded_loss"]
    assert 10 ** loss["log10"] == pytest.approx(value) and "range 4.6" in loss["note"]


def test_every_term_makes_it_larger():
    base = row()["value"]
    assert row({"nats": 31.0})["value"] > base and row({"error": 0.21})["value"] > base
    assert row(delta=0.01)["value"] > base > row(delta=0.2)["value"]
    assert row({"error": 0.0, "nats": 1e5})["value"] == 1.0


def test_what_it_says():
    found = row()
    assert (found["kind"], found["bounds"], found["vacuous"], found["gap_ratio"]) == (
        "certificate", "error", True, None,
    )  # fmt: skip
    for word in ("quantised network", "delta = 0.05", "30 nats", "2 tensors", "independent", "did not see"):
        assert word in found["note"]
    assert "flipped" not in found["note"] and "labels that are flipped" in row(confusion=np.eye(2))["note"]
    assert "100 samples and n is 400" in row(num_data=400)["note"]
    assert "no 0-1 error" in row({"error": None})["note"]


# -- coin flips -------------------------------------------------------------------------------------------------------


def certificate(seed, num=200, width=48):
    """Of a network that learned coin flips by heart."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 2))
    init = copy.deepcopy(net.state_dict())
    x, y = torch.randn(num, 20), torch.randint(2, (num,))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    options = {"quantized_error": {"taus": (0.01, 1.0, 30.0), "num_pilot": 200}}
    results = genbound.evaluate(genbound.Problem(net, init, (x, y)), ["compression_certificate"], options=options)
    return results.bounds["compression_certificate"].value


def wrong(seeds):
    return np.mean([certificate(seed) < 0.5 for seed in seeds])


def test_coin_flips_are_not_certified():
    assert wrong(range(4)) == 0


def test_with_choices_that_nobody_pays_for_it_fails(monkeypatch):
    """The integers are free: only the form and the step are counted."""
    from genbound.posterior import coded_tensor

    monkeypatch.setattr(coded_tensor, "code_nats", lambda integers: 0.0)
    monkeypatch.setattr(coded_tensor, "MOST_PIECES", 1)
    assert wrong(range(2)) > 0.5


def test_with_a_forgotten_coordinate_it_fails(monkeypatch):
    """All but one bias stays as it was learned, and is not described."""
    plain = quantized_error.changed_groups
    monkeypatch.setattr(
        quantized_error, "changed_groups", lambda problem: [g for g in plain(problem) if g.name == "2.bias"]
    )
    assert wrong(range(3)) > 0.5


def test_with_a_centre_at_the_tuned_weights_it_fails(monkeypatch):
    monkeypatch.setattr(quantized_error, "centre", lambda problem, name: problem.params[name])
    assert wrong(range(3)) > 0.5


@pytest.mark.slow
def test_coin_flips_are_hardly_ever_certified():
    assert wrong(range(300)) <= 0.05


# -- a population whose every error is known --------------------------------------------------------------------------


def misses(seeds):
    """How often the certificate is below the quantised network's true error."""
    random = torch.Generator().manual_seed(5)
    population = torch.randn(64, 3, generator=random)
    right = (population @ torch.tensor([1.0, -2.0, 0.5]) > 0).long()
    missed = 0
    for seed in seeds:
        random = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        net = nn.Linear(3, 2)
        init = copy.deepcopy(net.state_dict())
        places = torch.randint(64, (200,), generator=random)
        flipped = torch.rand(200, generator=random) < 0.1
        x, y = population[places], torch.where(flipped, 1 - right[places], right[places])
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        results = genbound.evaluate(genbound.Problem(net, init, (x, y)), ["compression_certificate"])
        net.load_state_dict({k: torch.from_numpy(v) for k, v in results.networks["quantized_error"].items()})
        with torch.no_grad():
            true = float(torch.where(net(population).argmax(1) == right, 0.1, 0.9).mean())
        value = results.bounds["compression_certificate"].value
        assert value < 0.5
        missed += value < true
    return missed


def test_certificates_hold_on_a_few_samples():
    assert misses(range(4)) == 0


@pytest.mark.slow
def test_certificates_hold_over_a_thousand_samples():
    assert misses(range(1000)) <= 50
