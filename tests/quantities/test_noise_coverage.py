"""Error bars of ``noise_stability`` where the training set is fitted, against brute force in activation space."""

import numpy as np
import pytest
import torch
from cases import D
from torch import nn
from torch.nn.functional import cross_entropy

import genbound
from genbound.network.problem import Problem

SIGMAS = (0.001, 0.002, 0.005, 0.01, 0.02)


def fitted(activation, num=60):
    """A network of three layers trained to a loss of 5e-4, with its data."""
    torch.manual_seed(0)
    x = torch.randn(num, 10, dtype=D)
    y = (x @ torch.randn(10, 3, dtype=D) + 0.5 * torch.randn(num, 3, dtype=D)).argmax(1)
    model = nn.Sequential(nn.Linear(10, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 3)).to(D)
    init = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    while (loss := cross_entropy(model(x), y)) > 5e-4:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Problem(model, init, (x, y), batch_size=64), model, x, y


@torch.no_grad()
def brute_force(model, x, y, sigma, draws, chunk=1000):
    """Mean rise over antithetic pairs of noise of every sample's own: normal numbers on the rows of each layer."""
    generator, total = torch.Generator().manual_seed(1), 0.0
    base = cross_entropy(model(x), y)
    for _ in range(draws // chunk):
        normals, losses = {}, []
        for sign in (sigma, -sigma):
            h = x[:, None].expand(len(x), chunk, -1)
            for i, layer in enumerate(model):
                z = layer(h)
                if isinstance(layer, nn.Linear):
                    if i not in normals:
                        normals[i] = torch.randn(z.shape, generator=generator, dtype=D)
                    h = z + sign * h.norm(dim=-1, keepdim=True) * normals[i]
                else:
                    h = z
            losses.append(cross_entropy(h.flatten(0, 1), y.repeat_interleave(chunk)))
        total += float((losses[0] + losses[1]) / 2 - base)
    return total / (draws // chunk)


def runs(problem, seeds, sigmas=SIGMAS):
    options = {"noise_stability": {"sigmas": sigmas}}
    for seed in seeds:
        yield genbound.evaluate(problem, ["noise_stability"], seed, options=options).quantities["noise_stability"]


def test_error_bars_of_a_network_that_fits_its_data():
    problem, *parts = fitted(nn.GELU)
    truth = brute_force(*parts, 0.02, 4000)
    rows = [summary["sigmas"][0] for summary in runs(problem, range(6), (0.02,))]
    assert sum(row["reliable"] for row in rows) >= 4
    assert all(abs(row["value"] - truth) <= 4 * row["sem"] + 0.03 * truth for row in rows if row["reliable"])
    # Not one of them is sure of what it cannot know: without the control the error is what was asked for.
    assert all(row["sem"] >= 0.01 * row["value"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU, nn.Tanh])
def test_coverage_on_networks_that_fit_their_data(activation):
    problem, *parts = fitted(activation)
    found = [summary["sigmas"] for summary in runs(problem, range(200))]
    for i, sigma in enumerate(SIGMAS):
        truth = brute_force(*parts, sigma, 40000)
        known = [rows[i] for rows in found if rows[i]["reliable"]]
        inside = np.mean([abs(row["value"] - truth) <= 1.96 * row["sem"] for row in known])
        print(f"{activation.__name__} {sigma}: {len(known)} known, {100 * inside:.1f} % inside")
        assert len(known) >= 150 and 0.91 <= inside <= 0.99
