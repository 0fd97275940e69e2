"""The Hessian of the mean loss as an operator, against dense Hessians in float64."""

import numpy as np
import pytest
import torch
from cases import CASES, D
from torch import nn

import genbound
from genbound.curvature.fisher import fisher_share
from genbound.curvature.mean_products import MeanCurvature
from genbound.network.weights import WeightProblem

CHOSEN = (
    "mlp_gelu", "conv_silu", "encoder_tied", "time_first", "twice", "weight_norm", "lstm", "squared_error",
    "multi_label", "bounded", "clipped_gelu", "custom_loss", "tokens", "unused", "embedding",
)  # fmt: skip


def dense(operator):
    return operator @ np.eye(operator.shape[0])


def agree(got, expected, tolerance=1e-10):
    expected = np.asarray(expected)
    assert got.shape == expected.shape and got.dtype == np.float64
    assert np.abs(got - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", CHOSEN)
def test_all_layers_against_the_dense_hessian(name, problems, truths):
    problem, truth = problems(name), truths(name)
    expected, where = truth.joint_hessian_of_mean(range(problem.num_samples))
    operator = genbound.hessian_operator(problem)
    assert operator.layers == where
    agree(dense(operator), expected)


@pytest.mark.parametrize("name", ["mlp_gelu", "encoder_tied", "squared_error", "bounded"])
def test_a_layer_is_its_own_block(name, problems, truths):
    problem = problems(name)
    for layer in problem.layers:
        agree(dense(genbound.hessian_operator(problem, layer.name)), truths(name).blocks(layer.name).mean(0))


def test_some_layers_have_the_blocks_between_them(problems):
    problem = problems("mlp_gelu")
    last, first = problem.layers[2].name, problem.layers[0].name
    both, whole = genbound.hessian_operator(problem, [last, first]), genbound.hessian_operator(problem)
    block = dense(whole)[whole.layers[last], whole.layers[first]]
    agree(dense(both)[both.layers[last], both.layers[first]], block, 1e-13)
    assert np.abs(block).max() > 1e-3


def jacobian(problem, positions, names):
    """``[n, *output, d]`` of the outputs in the weights, by torch.func."""
    products = MeanCurvature(problem, names)
    inputs = problem.batch(positions).inputs

    def outputs(flat):
        return problem.forward({**problem.params, **products.unflatten(flat)}, inputs)

    return torch.func.jacrev(outputs)(products.flatten(problem.params))


def fisher_by_hand(problem, names):
    """The mean over the samples of E[g g^T], every labelling weighed with its probability."""
    total = 0
    for p in range(problem.num_samples):
        batch = problem.batch([p])
        j = jacobian(problem, [p], names)[0]
        with torch.no_grad():
            f = problem.forward(problem.params, batch.inputs)[0]
        if problem.loss.name == "multi_label":
            q = f.sigmoid()
            middle = torch.diag(q * (1 - q)) / len(q) ** 2
        elif problem.loss.name == "squared_error":
            middle = 2 * torch.eye(len(f), dtype=D)  # 4 E[(f - y)(f - y)^T] with variance 1/2
        else:
            rows, labels = f.reshape(-1, f.shape[-1]), batch.targets.reshape(-1)
            counted = labels != -100
            blocks = [
                (torch.diag(q) - torch.outer(q, q)) * bool(c) / int(counted.sum()) ** 2
                for q, c in zip(rows.softmax(-1), counted, strict=True)
            ]
            middle, j = torch.block_diag(*blocks), j.reshape(-1, j.shape[-1])
        total = total + j.T @ middle @ j
    return (total / problem.num_samples).numpy()


@pytest.mark.parametrize("name", ["mlp_gelu", "tokens", "encoder", "squared_error", "multi_label"])
def test_fisher_by_hand(name, problems):
    problem = problems(name)
    names = [layer.name for layer in problem.layers]
    agree(dense(genbound.hessian_operator(problem, curvature="fisher")), fisher_by_hand(problem, names))


@pytest.mark.parametrize("name", ["mlp_gelu", "squared_error", "bounded", "custom_loss", "tokens"])
def test_gauss_newton_by_hand(name, problems):
    problem = problems(name)
    names, total = [layer.name for layer in problem.layers], 0
    for p in range(problem.num_samples):
        batch, j = problem.batch([p]), jacobian(problem, [p], names)[0]
        with torch.no_grad():
            f = problem.forward(problem.params, batch.inputs)
        middle = torch.func.hessian(lambda f, batch=batch: problem.loss.per_sample(f, batch.targets)[0])(f)
        j = j.reshape(-1, j.shape[-1])
        total = total + j.T @ middle.reshape(len(j), len(j)) @ j
    agree(dense(genbound.hessian_operator(problem, curvature="ggn")), total / problem.num_samples)


def test_gauss_newton_is_the_hessian_where_the_output_is_piecewise_linear(problems):
    problem = problems("mlp_relu")
    name = problem.layers[1].name
    agree(
        dense(genbound.hessian_operator(problem, name, "ggn")), dense(genbound.hessian_operator(problem, name)), 1e-12
    )


def test_the_batch_size_changes_rounding_only():
    one, many = (CASES["encoder"].problem(batch_size=size) for size in (1, 7))
    v = np.random.default_rng(0).standard_normal(genbound.hessian_operator(one).shape[0])
    for curvature in ("hessian", "ggn", "fisher"):
        a, b = (genbound.hessian_operator(p, curvature=curvature) @ v for p in (one, many))
        agree(a, b, 1e-12)


def test_scipy_solves_with_it(problems, truths):
    from scipy.sparse.linalg import eigsh

    problem = problems("mlp_gelu")
    operator = genbound.hessian_operator(problem)
    expected = np.linalg.eigvalsh(truths("mlp_gelu").joint_hessian_of_mean(range(problem.num_samples))[0])
    found = eigsh(operator, k=2, which="LA", return_eigenvectors=False, v0=np.ones(operator.shape[0]))
    np.testing.assert_allclose(np.sort(found), expected[-2:], rtol=1e-9)
    v = np.arange(operator.shape[0], dtype=float)
    np.testing.assert_array_equal(operator.T @ v, operator @ v)
    assert operator.dtype == np.float64


def test_weights_become_vectors_and_back(problems):
    problem = problems("mlp_gelu")
    operator = genbound.hessian_operator(problem)
    v = operator.flatten(problem.displacement)
    back = operator.unflatten(v)
    assert all(torch.equal(back[n], problem.displacement[n]) for n in problem.displacement)
    form = sum(float((problem.displacement[a] * hv).sum()) for a, hv in operator.unflatten(operator @ v).items())
    assert form == pytest.approx(float(v @ (operator @ v)), rel=1e-12)


def test_single_precision_adds_up_in_double():
    problem = CASES["mlp_gelu"].problem(dtype=torch.float32)
    exact = CASES["mlp_gelu"].problem()
    v = np.random.default_rng(0).standard_normal(genbound.hessian_operator(problem).shape[0])
    a, b = (genbound.hessian_operator(p) @ v for p in (problem, exact))
    assert a.dtype == np.float64
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_shares_of_fisher(problems):
    problem = problems("tokens")
    batch = problem.batch([0, 1])
    with torch.no_grad():
        outputs = problem.forward(problem.params, batch.inputs)
    labels = (batch.targets != -100).flatten(1).sum(1)
    assert torch.equal(fisher_share(problem.loss, outputs, batch.targets), 1 / labels.to(D))


def test_refusals(problems):
    problem = problems("mlp_gelu")
    with pytest.raises(genbound.GenboundError, match="no layer 'nope'"):
        genbound.hessian_operator(problem, "nope")
    with pytest.raises(genbound.GenboundError, match="each layer once"):
        genbound.hessian_operator(problem, [problem.layers[0].name] * 2)
    with pytest.raises(genbound.GenboundError, match="each layer once"):
        genbound.hessian_operator(problem, [])
    with pytest.raises(genbound.GenboundError, match="hessian, ggn, fisher"):
        genbound.hessian_operator(problem, curvature="gnn")
    for name in ("bounded", "clipped", "custom_loss"):
        with pytest.raises(genbound.GenboundError, match="no negative log-likelihood"):
            genbound.hessian_operator(problems(name), curvature="fisher")
    weights = {"a": torch.ones(2, 2)}
    with pytest.raises(genbound.GenboundError, match="two sets of weights"):
        genbound.hessian_operator(WeightProblem(weights, weights, "no model is given"))


def test_nothing_is_disturbed():
    model, init, inputs, targets = CASES["mlp_gelu"].parts()
    model.train()
    problem = genbound.Problem(model, init, (inputs, targets))
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    for curvature in ("hessian", "ggn", "fisher"):
        operator = genbound.hessian_operator(problem, curvature=curvature)
        operator @ np.ones(operator.shape[0])
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in model.named_parameters())
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert isinstance(model, nn.Module)
