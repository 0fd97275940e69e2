"""Noise stability: closed forms, plain noise on the weights, and the quadratic regime."""

import math

import numpy as np
import pytest
import torch
from cases import D
from shared_problems import linear
from torch import nn

import genbound
from genbound.curvature import noise_by_row
from genbound.estimators import random
from genbound.network.problem import Problem
from genbound.quantities.noise_stability import is_quadratic, relative_rss


def regression(n=40, seed=0, batch_size=16):
    r = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 5, generator=r, dtype=D), torch.randn(n, 3, generator=r, dtype=D)
    return linear(torch.randn(3, 5, generator=r), x, y, loss="squared_error", batch_size=batch_size), x


@pytest.mark.parametrize("seed", range(4))
def test_noise_stability_of_a_quadratic_loss_is_its_hessian_approximation(seed):
    """|(W + U)x - y|^2: I = sigma^2 * 3 * mean |x|^2 for any sigma, however large; Tr H = 2 * 3 * mean |x|^2."""
    problem, x = regression()
    sigmas = (1e-3, 0.1, 1.0, 30.0)
    results = genbound.evaluate(problem, ["noise_stability"], seed, options={"noise_stability": {"sigmas": sigmas}})
    square = float(x.square().sum(1).mean())
    assert results.quantities["hessian_trace"]["total"]["value"] == pytest.approx(6 * square, rel=1e-12)
    summary = results.quantities["noise_stability"]
    for row, sigma in zip(summary["sigmas"], sigmas, strict=True):
        assert row["hessian_approximation"] == pytest.approx(3 * sigma**2 * square, rel=1e-12)
        # A quadratic loss is its own second-order term: what is left of the spread is rounding.
        assert abs(row["value"] - row["hessian_approximation"]) <= 4 * row["sem"] + 1e-13 * row["value"] + 1e-14
        assert 0 < row["sem"] <= 0.06 * row["value"]
        assert row["quadratic_regime"]
    assert summary["leaves_quadratic_regime_at"] is None
    assert summary["relative_rss"] < 0.05


def test_few_samples_with_few_cheap_draws():
    """43 pairs each at the least, and 64 at the most: no power of two lies between, however small the wanted error."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), torch.randn(60, 4, dtype=D)
    y, init = model(x).argmax(1), {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):  # noise on confident answers has a heavy tail, for which more draws are wanted
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    problem = Problem(model, init, (x, y), num_samples=3, sample_seed=0)
    found = genbound.measure(problem, "noise_stability", small_perturbations=64)
    assert all(one.sem > 0 for one in found.values())


def test_noise_stability_notices_that_the_regime_is_left(problems):
    found = genbound.evaluate(
        problems("mlp_gelu"),
        ["noise_stability"],
        options={"noise_stability": {"sigmas": (0.01, 3.0, 30.0), "relative_sem": 5.0}},
    ).quantities["noise_stability"]
    assert found["sigmas"][0]["quadratic_regime"] and not found["sigmas"][2]["quadratic_regime"]
    assert found["leaves_quadratic_regime_at"] in (3.0, 30.0)


@pytest.mark.parametrize("name", ["mlp_gelu", "twice"])
def test_normals_that_are_made_on_a_device_tell_the_same(name, monkeypatch, problems):
    """Rows' own noise, and that of a block of samples."""

    def rises():
        return genbound.measure(problems(name), "noise_stability", sigmas=(0.1, 0.5), relative_sem=0.2)

    host = rises()
    for module in (random, noise_by_row):
        monkeypatch.setattr(module, "is_host", lambda device: False)
    device = rises()
    for sigma, one in host.items():
        other = device[sigma]
        assert other.value != one.value and abs(other.value - one.value) < 4 * math.hypot(one.sem, other.sem)


@pytest.mark.parametrize(
    "name", ["mlp_relu", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp_gelu", "conv_silu"))]
)
def test_noise_stability_at_small_noise(name, problems, truths):
    """Half of sigma^2 times the dense trace, layers only, whatever else the network has."""
    truth = truths(name)
    trace = sum(float(truth.traces(layer).mean()) for layer in truth.layers)
    found = genbound.measure(problems(name), "noise_stability", sigmas=(1e-3,), relative_sem=0.3)[1e-3]
    expected, sem = 0.5e-6 * trace, found.sem
    if name == "conv_silu":
        # One of its samples lies on a kink of a max-pool, which no Hessian sees: plain noise on the weights is the
        # truth.
        rises = _plain_rises(problems(name), 1e-3, 1500)
        expected, own = rises.mean(), rises.std(ddof=1) / math.sqrt(len(rises))
        assert own < 0.05 * expected and abs(expected - 0.5e-6 * trace) > 4 * own
        sem = math.hypot(sem, own)
    assert abs(found.value - expected) <= 4 * sem + 2e-3 * abs(0.5e-6 * trace)


def _plain_rises(problem, sigma, num):
    """Antithetic rises of the mean loss under noise added to the weights themselves."""
    generator = torch.Generator().manual_seed(0)
    batches = [problem.batch(run) for run in problem.batches(range(problem.num_samples))]

    def loss(moved):
        with torch.no_grad():
            each = [
                problem.loss.per_sample(problem.forward({**problem.params, **moved}, b.inputs), b.targets)
                for b in batches
            ]
        return float(torch.cat(each).mean())

    base, rises = loss({}), []
    for _ in range(num):
        noise = {layer.name: torch.randn(layer.shape, generator=generator, dtype=D) for layer in problem.layers}
        pair = [loss({n: problem.params[n] + s * u for n, u in noise.items()}) for s in (sigma, -sigma)]
        rises.append(sum(pair) / 2 - base)
    return np.array(rises)


def test_noise_stability_with_a_single_draw_of_most_samples():
    """Values over seeds scatter about plain noise on the weights as their errors say."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(D)
    init = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    x = torch.randn(300, 4, generator=generator, dtype=D) * torch.linspace(0.1, 3, 300, dtype=D)[:, None]
    problem = Problem(model, init, (x, (x.sum(1) > 0).long()), dtype=D, batch_size=300)
    # No control: the mean of the second-order term is not known well enough for it, and it explains little at this
    # sigma.
    options = {"noise_stability": {"sigmas": (1.0,), "relative_sem": 1.0, "num_shared": 2, "max_shared_samples": 8}}
    runs = [genbound.evaluate(problem, ["noise_stability"], seed, options=options) for seed in range(1000, 1032)]
    rows = [run.quantities["noise_stability"]["sigmas"][0] for run in runs]
    assert all(row["num_perturbations"] < 2 * 1.5 * 300 for row in rows)
    values, errors = np.array([r["value"] for r in rows]), np.array([r["sem"] for r in rows])
    assert 0.7 < values.std(ddof=1) / np.sqrt((errors**2).mean()) < 1.4
    plain = _plain_rises(problem, 1.0, 2000)
    assert abs(values.mean() - plain.mean()) <= 4 * np.hypot(values.std() / 32**0.5, plain.std() / len(plain) ** 0.5)


def test_std_over_shared_draws_is_the_published_spread():
    """One-sided shared draws on a linear loss: std = sigma * |gradient|, which no antithetic pair would show."""

    def linear_loss(outputs, targets):
        return outputs.flatten(1).sum(1)

    r = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=r, dtype=D)
    problem = linear(torch.randn(3, 4, generator=r), x, torch.zeros(20, dtype=torch.long), loss=linear_loss)
    row = genbound.evaluate(
        problem, ["noise_stability"], options={"noise_stability": {"sigmas": (0.1,), "num_shared": 400}}
    ).quantities["noise_stability"]["sigmas"][0]
    gradient = float(x.mean(0).norm()) * 3**0.5
    assert row["std"] == pytest.approx(0.1 * gradient, rel=0.12)
    assert row["value"] == pytest.approx(0.0, abs=1e-14)


# The table of the talk "Robust fine-tuning of deep neural networks with Hessian-based generalization guarantees".
SLIDE = {
    "resnet18": (
        (0.86, 1.13, 1.45, 1.82, 2.23, 2.65, 3.07, 3.47, 3.84, 4.15, 4.43),
        (1.07, 1.29, 1.54, 1.80, 2.09, 2.34, 2.73, 3.08, 3.46, 3.85, 4.27), 0.78,
    ),
    "resnet50": (
        (0.39, 1.12, 1.56, 2.10, 2.71, 3.30, 3.80, 4.17, 4.60, 4.77, 5.03),
        (1.24, 1.50, 1.79, 2.10, 2.43, 2.79, 3.18, 3.59, 4.02, 4.48, 4.97), 1.88,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIDE)
def test_relative_rss_of_the_slides_own_columns(name):
    noise, approximation, percent = SLIDE[name]
    assert 100 * relative_rss(noise, approximation) == pytest.approx(percent, abs=0.005)


def test_quadratic_regime_by_hand():
    assert is_quadratic(1.09, 1.0, 0.0) and not is_quadratic(1.11, 1.0, 0.0)
    assert is_quadratic(0.91, 1.0, 0.0) and not is_quadratic(0.89, 1.0, 0.0)
    assert is_quadratic(1.29, 1.0, 0.1) and not is_quadratic(1.31, 1.0, 0.1)
