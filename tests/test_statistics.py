"""Randomness: equal seeds, other seeds, what may not change a value, and whether the error bars are right."""

import itertools

import numpy as np
import pytest
import torch
from cases import CASES

import genbound
from genbound.evaluation.selection import resolve

STOCHASTIC = {
    "hessian_trace": {"exact_products": 0, "layer_sem": 5.0, "total_sem": 5.0},
    "noise_stability": {"sigmas": (0.01, 0.1), "relative_sem": 5.0},
    "max_positive_trace": {"dense_products": 0, "num_steps": 6, "num_probes": 4},
}
MEASURES = [
    "losses",
    "displacement_norm",
    "hessian_trace",
    "noise_stability",
    "max_quadratic_form",
    "max_positive_trace",
]


def run(problem, measures=MEASURES, seed=0):
    options = {k: v for k, v in STOCHASTIC.items() if k in resolve(measures)[0]}
    return genbound.evaluate(problem, measures, seed, options=options)


def numbers(value, path=()):
    """Every number of a summary by its path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in numbers(part, (*path, str(key))).items()}
    if isinstance(value, list):
        return {k: v for i, part in enumerate(value) for k, v in numbers(part, (*path, i)).items()}
    return {path: value} if isinstance(value, int | float) and not isinstance(value, bool) else {}


def close(a, b, relative=1e-9):
    """But for what a bracket costs, and how far samples are refined that are not the largest."""
    free = {"num_products", "quantiles"}
    a, b = ({k: v for k, v in numbers(x).items() if not free & set(k)} for x in (a, b))
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert abs(value - b[key]) <= relative * max(abs(value), 1e-6), (key, value, b[key])


def test_bit_equal_at_equal_seed():
    for name in ("mlp_gelu", "twice"):
        a, b = (run(CASES[name].problem()) for _ in range(2))
        assert a.quantities == b.quantities and a.bounds == b.bounds
        assert a.samples.equals(b.samples)


def test_other_seeds_give_other_draws(problems):
    a, b = (run(problems("mlp_gelu"), seed=s).quantities for s in (0, 1))
    assert a["hessian_trace"]["total"]["value"] != b["hessian_trace"]["total"]["value"]
    assert a["noise_stability"]["sigmas"][0]["value"] != b["noise_stability"]["sigmas"][0]["value"]
    for exact in ("losses", "displacement_norm", "max_quadratic_form"):
        assert a[exact] == b[exact]


def test_global_seeds_change_nothing(problems):
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(run(problems("mlp_gelu")).quantities)
    assert found[0] == found[1]


def test_measuring_more_changes_no_other(problems):
    everything = run(problems("conv_silu")).quantities
    for name in ("hessian_trace", "noise_stability", "max_quadratic_form", "max_positive_trace"):
        assert run(problems("conv_silu"), [name]).quantities[name] == everything[name]


@pytest.mark.parametrize(
    "name", ["mlp_gelu", "twice", "siamese", "einsum", "lstm_cell", pytest.param("time_first", marks=pytest.mark.slow)]
)
def test_batch_size_changes_rounding_only(name):
    """Also what is drawn: 1, 2 and all samples in a pass."""
    measures = ["losses", "hessian_trace", "noise_stability", "max_quadratic_form"]
    first = run(CASES[name].problem(batch_size=1), measures).quantities
    for size in (2, 64):
        close(first, run(CASES[name].problem(batch_size=size), measures).quantities, 1e-8)


def test_order_of_the_samples_changes_exact_quantities_by_rounding(problems):
    model, init, x, y = CASES["mlp_gelu"].parts()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    shuffled = genbound.Problem(model, init, (x[order], y[order]), batch_size=3)
    measures = ["losses", "hessian_trace", "max_quadratic_form", "max_positive_trace"]
    a = genbound.evaluate(problems("mlp_gelu"), measures).quantities
    b = genbound.evaluate(shuffled, measures).quantities
    for name in ("losses", "hessian_trace", "max_positive_trace"):
        assert all(
            abs(v - numbers(b[name])[k]) <= 1e-9 * max(1, abs(v))
            for k, v in numbers(a[name]).items()
            if k[-1] != "sample"
        )
    for layer, row in a["max_quadratic_form"]["layers"].items():
        other = b["max_quadratic_form"]["layers"][layer]
        assert order[other["sample"]] == row["sample"]
        assert max(row["lower"], other["lower"]) <= min(row["upper"], other["upper"])


def test_the_measured_part_is_drawn_from_its_own_seed():
    a, b, c = (CASES["mlp_gelu"].problem(num_samples=4, sample_seed=s).indices for s in (0, 0, 1))
    assert a == b != c and len(set(a)) == 4 and a == sorted(a)


# -- coverage of the intervals ------------------------------------------------------------------------------------


def coverage(name, quantity, seeds):
    """Share of seeds with the truth inside value +- 1.96 sem, mean error in its standard errors, sem against spread."""
    problem, truth = CASES[name].problem(batch_size=64), CASES[name].truth()
    trace = sum(float(truth.traces(layer).mean()) for layer in truth.layers)
    found = []
    for seed in range(seeds):
        if quantity == "hessian_trace":
            options = {"exact_products": 0, "layer_sem": 5.0, "total_sem": 5.0}
            row = genbound.evaluate(problem, ["hessian_trace"], seed, options={quantity: options})
            row = row.quantities["hessian_trace"]["total"]
            found.append((row["value"], row["sem"]))
        else:
            estimate = genbound.measure(problem, quantity, seed, sigmas=(1e-3,), relative_sem=5.0)[1e-3]
            found.append((estimate.value, estimate.sem))
    value, sem = np.array(found).T
    exact = trace if quantity == "hessian_trace" else 0.5e-6 * trace
    error = value.mean() - exact
    if quantity == "noise_stability":
        # The error bars are finer than what the fourth order adds to half of sigma^2 Tr H: they are tried around the
        # mean.
        error, exact = np.sign(error) * max(abs(error) - 1e-4 * abs(exact), 0.0), value.mean()
    inside = float((np.abs(value - exact) <= 1.96 * sem).mean())
    drift = float(error / (value.std(ddof=1) / np.sqrt(seeds)))
    return inside, drift, float(np.sqrt((sem**2).mean()) / value.std(ddof=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quantity"), list(itertools.product(["mlp_gelu", "encoder"], ["hessian_trace", "noise_stability"]))
)
def test_coverage(name, quantity):
    inside, drift, ratio = coverage(name, quantity, 200)
    print(f"{name} {quantity}: inside {100 * inside:.1f} %, drift {drift:.2f}, sem / spread {ratio:.3f}")
    assert 0.91 <= inside <= 0.99
    assert abs(drift) < 4
    assert 0.8 < ratio < 1.25


def test_coverage_of_forty_seeds():
    inside, drift, _ = coverage("mlp_gelu", "hessian_trace", 40)
    assert inside >= 0.8 and abs(drift) < 4
