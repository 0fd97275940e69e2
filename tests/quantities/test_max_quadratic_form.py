"""The largest quadratic form of a sample: its interval holds the dense truth."""

import math

import pytest
import torch
from cases import CASES
from shared_problems import CHOSEN, linear

import genbound


@pytest.mark.parametrize("tolerance", [0.2, 0.01, 1e-6])
@pytest.mark.parametrize("name", CHOSEN)
def test_max_quadratic_form(name, tolerance, problems, truths):
    problem, truth = problems(name), truths(name)
    results = genbound.evaluate(
        problem, ["max_quadratic_form"], options={"max_quadratic_form": {"tolerance": tolerance}}
    )
    rows = results.quantities["max_quadratic_form"]["layers"]
    for layer in truth.layers:
        row, values = rows[layer], truth.positive_forms(layer)
        best = float(values.max())
        slack = 1e-12 * max(1.0, best)
        assert row["lower"] - slack <= best <= row["upper"] + slack, layer
        assert row["value"] == row["upper"]
        assert row["upper"] - row["lower"] <= tolerance * row["upper"] + slack, layer
        if best > 1e-12:
            assert float(values[row["sample"]]) >= best * (1 - tolerance) - slack
    table = results.samples.pivot(index="sample", columns="layer")
    for layer in truth.layers:
        values = truth.positive_forms(layer).numpy()
        assert (table["max_quadratic_form_lower", layer].to_numpy() <= values + 1e-10).all()
        assert (table["max_quadratic_form_upper", layer].to_numpy() >= values - 1e-10).all()


def test_max_quadratic_form_names_the_sample_of_the_data(truths):
    """The index is that of the data, not of the measured part."""
    problem = CASES["mlp_gelu"].problem(num_samples=4, sample_seed=2)
    found = genbound.measure(problem, "max_quadratic_form", tolerance=1e-6)
    assert problem.indices != [0, 1, 2, 3]
    for layer, interval in found.items():
        values = truths("mlp_gelu").positive_forms(layer)[problem.indices]
        assert interval.sample == problem.indices[int(values.argmax())]


def test_max_quadratic_form_in_single_precision(truths):
    for name in ("mlp_gelu", "encoder_tied", "conv_silu"):
        found = genbound.measure(CASES[name].problem(dtype=torch.float32), "max_quadratic_form")
        for layer, interval in found.items():
            best = float(truths(name).positive_forms(layer).max())
            assert interval.lower <= best <= interval.upper
            assert interval.upper - interval.lower <= 0.0101 * interval.upper


def test_max_quadratic_form_of_softmax_regression():
    """By hand, v'Hv = Var_p(Vx).

    x = 1, scores (0, 0), V = (1, -1): variance 1. Second sample: x = 2: 4 * p (1-p) * 4 ...
    """
    problem = linear([[0.5], [-0.5]], [[0.0], [1.0]], [0, 1], init=0.0)
    p = 1 / (1 + math.exp(-1))
    found = genbound.measure(problem, "max_quadratic_form")["weight"]
    assert found.value == pytest.approx(p * (1 - p), rel=1e-9) and found.sample == 1


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("name", ["mlp_gelu", "encoder_tied", "mlp_relu"])
def test_paper_code_convention(name, size, truths):
    """The published scripts: max over batch means of v_i . (Hv)_i with the joint v, no truncation, head with v = W."""
    case, truth = CASES[name], truths(name)
    head = (case.layers[-1],)
    problem = case.problem(head=head)
    found = genbound.measure(problem, "max_quadratic_form", convention="paper-code", paper_batch_size=size)
    v = {n: truth.params[n].flatten() if n in head else truth.v[n] for n in case.layers}
    values = []
    for start in range(0, len(truth.inputs), size):
        h, where = truth.joint_hessian_of_mean(range(start, min(start + size, len(truth.inputs))))
        product = h @ torch.cat([v[n] for n in case.layers])
        values.append([float(v[n] @ product[where[n]]) for n in case.layers])
    for i, layer in enumerate(case.layers):
        assert found[layer].value == pytest.approx(max(row[i] for row in values), rel=1e-9, abs=1e-11)
    assert found[case.layers[0]].value != genbound.measure(problem, "max_quadratic_form")[case.layers[0]].value
