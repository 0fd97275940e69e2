"""Widths of the priors: what their choice costs is a probability, and many that are alike cost little."""

import itertools
import math

import numpy as np
import pytest
import torch
from posterior_nets import moved
from torch import nn

import genbound
from genbound.posterior import prior_widths
from genbound.posterior.gaussian import LAMBDAS, Spectrum, best_width, objective
from genbound.posterior.prior_widths import FEW, best_widths, described


def groups(num, seed=0, spread=0.3):
    rng = np.random.default_rng(seed)
    squares = list(rng.lognormal(0, spread, num))
    return squares, [Spectrum.of(rng.lognormal(0, spread, 5) * 1e-2) for _ in range(num)]


def test_few_groups_choose_for_themselves():
    squares, spectra = groups(FEW)
    widths, nats = best_widths(squares, spectra, 300.0)
    alone = [best_width(s, h, 300.0) for s, h in zip(squares, spectra, strict=True)]
    assert [w.prior for w in widths] == [w.prior for w in alone] and nats == pytest.approx(FEW * math.log(51))


def test_the_probabilities_of_all_choices_add_up_to_no_more_than_one(monkeypatch):
    """Every combination of three groups on a grid of five points, with every base."""
    monkeypatch.setattr(prior_widths, "LAMBDAS", LAMBDAS[:5])
    every = [np.array(chosen) for chosen in itertools.product(range(5), repeat=3)]
    total = sum(math.exp(-described(chosen, base)) for chosen in every for base in range(5))
    assert 0 < total <= 1


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0])
def test_many_groups_are_described_together(spread):
    squares, spectra = groups(60, spread=spread)
    widths, nats = best_widths(squares, spectra, 300.0)
    every = list(zip(widths, squares, spectra, strict=True))
    total = nats + sum(objective(w.prior, s, h, 300.0) for w, s, h in every)
    apart = sum(min(objective(width, s, h, 300.0) for width in LAMBDAS) for s, h in zip(squares, spectra, strict=True))
    assert apart <= total - nats and total < apart + 60 * math.log(51) and all(w.prior in LAMBDAS for w in widths)
    # What is charged is a description of the choice that was made.
    chosen = np.array([LAMBDAS.index(w.prior) for w in widths])
    assert any(nats == pytest.approx(described(chosen, base)) for base in range(51))
    if spread < 1:
        assert nats < 60


def test_the_certificate_is_charged_for_it():
    torch.manual_seed(0)
    net, init = moved(nn.Sequential(*(nn.Linear(3, 3) for _ in range(6))), by=0.01)
    problem = genbound.Problem(net, init, (torch.randn(40, 3), torch.arange(40) % 3))
    found = genbound.evaluate(problem, ["gibbs_error"]).quantities["gibbs_error"]
    chosen = np.array([min(range(51), key=lambda k: abs(LAMBDAS[k] - g["prior"])) for g in found["groups"].values()])
    assert found["num_groups"] == 12
    assert any(found["log_union"] == pytest.approx(described(chosen, base)) for base in range(51))
