"""The exponent of the eigenvalues: closed form, a brute-force fit, drawn tails, and what has none."""

import numpy as np
import pytest
import torch

import genbound
from genbound.network.weights import WeightProblem
from genbound.quantities.power_law import eigenvalues, fit


def exponent(weight, **options):
    problem = WeightProblem({"w": weight}, {"w": torch.zeros_like(weight)}, "no network")
    return genbound.measure(problem, "power_law", **options)["layers"]["w"]


def brute_force(values):
    """Every smallest eigenvalue but the largest: the likelihood maximised on a grid, then the closest one."""
    found = []
    for start in range(len(values) - 1):
        tail = values[start:] / values[start]
        alphas = np.exp(np.linspace(np.log(1e-3), np.log(1e4), 8001)) + 1
        best = alphas[np.argmax(len(tail) * np.log(alphas - 1) - alphas * np.log(tail).sum())]
        steps = np.array([(tail < t).mean() for t in tail])
        found.append((np.abs(1 - tail ** (1 - best) - steps).max(), best, len(tail)))
    return min(found)[1:]


def test_three_eigenvalues_by_hand():
    """From 1 on alpha is 1 + 3 / (0 + 1 + 2) = 2, and F is 0, 1 - 1/e, 1 - 1/e^2 against 0, 1/3, 2/3: 0.299 apart.

    From e on it is 1 + 2 / 1 = 3, and F is 0, 1 - 1/e^2 against 0, 1/2: 0.365 apart. So the first.
    """
    tail = fit(np.array([1.0, np.e, np.e**2]))
    assert (tail.alpha, tail.size, tail.smallest) == (pytest.approx(2), 3, 1.0)
    assert tail.sem == pytest.approx(1 / 3**0.5)


@pytest.mark.parametrize("seed", range(3))
def test_against_brute_force(seed):
    weight = torch.randn(40, 25, generator=torch.Generator().manual_seed(seed))
    values = np.sort(np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2)
    assert eigenvalues(weight) == pytest.approx(values, rel=1e-9)
    alpha, size = brute_force(values)
    row = exponent(weight)
    assert (row["alpha"], row["num_tail"]) == (pytest.approx(alpha, rel=3e-3), size)
    assert row["num_eigenvalues"] == 25


@pytest.mark.parametrize("alpha", [2.0, 3.5])
def test_a_drawn_tail_is_found(alpha):
    """Of 2000 draws from the density itself; the fit may leave some of them out."""
    draws = np.sort((1 - np.random.default_rng(0).random(2000)) ** (-1 / (alpha - 1)))
    tail = fit(draws)
    assert abs(tail.alpha - alpha) < 4 * tail.sem and tail.size > 200


def test_a_number_times_the_weight_or_its_transpose_has_the_same():
    weight = torch.randn(30, 12, generator=torch.Generator().manual_seed(1))
    for other in (1e-4 * weight, weight.T.contiguous(), weight @ torch.linalg.qr(torch.randn(12, 12))[0]):
        assert exponent(other)["alpha"] == pytest.approx(exponent(weight)["alpha"], rel=1e-5)


def test_a_convolution_is_a_matrix_for_each_place_of_its_kernel():
    weight = torch.randn(6, 5, 3, 2, generator=torch.Generator().manual_seed(2))
    parts = [
        np.linalg.svd(weight[:, :, i, j].double().numpy(), compute_uv=False) ** 2 for i in range(3) for j in range(2)
    ]
    assert eigenvalues(weight) == pytest.approx(np.sort(np.concatenate(parts)), rel=1e-9)
    assert exponent(weight)["num_eigenvalues"] == 30


def test_low_rank_leaves_out_what_is_rounding():
    generator = torch.Generator().manual_seed(3)
    low = torch.randn(60, 15, generator=generator).double() @ torch.randn(15, 40, generator=generator).double()
    assert exponent(low)["num_eigenvalues"] == 15


@pytest.mark.parametrize(
    ("weight", "options", "reason"),
    [
        (torch.randn(4, 4), {}, "4 eigenvalues are too few"),
        (torch.zeros(20, 20), {}, "0 eigenvalues are too few"),
        (torch.eye(20), {}, "equal"),
        (torch.randn(30, 30), {"largest": 20}, "smaller side 30"),
    ],
)
def test_no_exponent_has_a_reason(weight, options, reason):
    row = exponent(weight, **options)
    assert row["alpha"] is None and reason in row["reason"]
    problem = WeightProblem({"w": weight}, {"w": torch.zeros_like(weight)}, "no network")
    bound = genbound.evaluate(problem, ["martin2021_alpha"], options={"power_law": options}).bounds["martin2021_alpha"]
    assert bound.value is None and reason in bound.note


def test_the_mean_over_the_layers_that_have_one():
    generator = torch.Generator().manual_seed(4)
    params = {
        "a": torch.randn(30, 20, generator=generator),
        "b": torch.randn(20, 20, generator=generator),
        "c": torch.eye(3),
    }
    problem = WeightProblem(params, {n: torch.zeros_like(w) for n, w in params.items()}, "no network")
    results = genbound.evaluate(problem, ["martin2021_alpha"])
    rows, bound = results.quantities["power_law"]["layers"], results.bounds["martin2021_alpha"]
    assert bound.value == pytest.approx((rows["a"]["alpha"] + rows["b"]["alpha"]) / 2)
    assert bound.upper - bound.value == pytest.approx(np.hypot(rows["a"]["alpha_sem"], rows["b"]["alpha_sem"]))
    assert (bound.kind, bound.vacuous, bound.note) == ("norm", None, "mean over 2 of 3 layers")
