"""Traces from random directions: unbiased, with the right noise, and the same directions on both routes."""

import pytest
import torch
from cases import D
from small_nets import Apply
from sweeping import close, drawn

from genbound.curvature.probes import probe_directions
from genbound.curvature.sweep import Sweep
from genbound.curvature.traces import (
    dense_remainder_trace,
    further_product,
    joint_trace,
    probe_trace,
    remainder_probes,
    separate_traces,
    sweep_directions,
)
from genbound.estimators.random import BLOCK, row_of

PROBED = ["mlp_gelu", "conv_silu", "gpt_conv1d", "softmax_gate", "tokens"]


def within_error(draws, expected, errors=4.5):
    """Of the mean over the first axis; exact where the draws do not spread."""
    sem = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= errors * sem + 1e-10 * (1 + expected.abs())).all()
    return sem


@pytest.mark.parametrize("name", PROBED)
def test_traces_are_unbiased(name, problems):
    problem, positions = problems(name), [0, 2, 3]
    tape = problem.tape(positions)
    expected = dense_remainder_trace(tape)
    separate = drawn(problem, positions, separate_traces)
    sem = within_error(separate, expected)
    within_error(drawn(problem, positions, joint_trace), expected.sum(1))
    for i, layer in enumerate(tape.layers):
        assert bool(expected[:, i].any()) == (layer not in tape.piecewise_linear) == bool(separate[..., i].any())
    if name == "mlp_gelu":  # signs on one position in front of a function of single entries: the block is diagonal
        assert float(sem[:, 1].max()) < 1e-12
    assert float((expected.abs() - 9 * sem).max()) > 0  # the errors are small enough to notice a factor of 2


def test_separate_draws_have_no_cross_layer_noise(problems):
    """A layer's draw does not know of the others, and is exactly 0 where the output is piecewise linear in it."""
    problem, positions = problems("mlp_gelu"), [0, 1, 4]
    sweep, names = Sweep(problem, positions), [layer.name for layer in problem.layers]
    rows = [row_of("test", p, 5, 16) for p in positions]
    together, joint = separate_traces(sweep, names, rows, 3), sweep.remainder(sweep_directions(sweep, names, rows, 3))
    for i, layer in enumerate(names):
        alone = separate_traces(sweep, [layer], rows, 3)
        assert torch.equal(alone[:, 0], together[:, i])
        assert torch.equal(joint_trace(sweep, [layer], rows, 3), together[:, i])
    assert together[:, :2].all() and not together[:, 2].any()
    assert float((joint - together.sum(1)).abs().max()) > 1e-3  # the joint draw holds the cross-layer terms


def test_directions_are_those_of_the_tape(problems):
    """Both routes draw the same numbers for the same rows, so that they may be mixed in one estimate."""
    problem, positions = problems("mlp_gelu"), [0, 3]
    tape, sweep = problem.tape(positions), Sweep(problem, positions)
    rows = [row_of("test", p, 0, 4) for p in positions]
    layers = {name: (tape.weights[name].detach(), tape.uses[name]) for name in tape.layers}
    expected = probe_directions(layers, rows, 0, tape.outputs.detach())
    for name, u in sweep_directions(sweep, tape.layers, rows, 0).items():
        close(u, expected[name][0], 1e-14)


@pytest.mark.parametrize("name", ["mlp_gelu", "conv_silu", "gpt_conv1d", "conv_transposed"])
def test_directions_have_the_covariance_of_independent_weights(name, problems):
    """E[u u'] = A A' for a layer's map A from weights to its result, whichever way the directions are drawn."""
    problem, position = problems(name), 1
    sweep = Sweep(problem, [position] * BLOCK)
    layer = problem.layers[1].name
    draws = torch.cat([
        sweep_directions(sweep, [layer], [row_of("test", position, d, 2000) for d in range(s, s + BLOCK)], 0)[layer]
        .view(BLOCK, -1)
        for s in range(0, 2000, BLOCK)
    ])  # fmt: skip
    single, shape = Sweep(problem, [position]).uses[layer], problem.params[layer].shape
    units = torch.eye(shape.numel(), dtype=D).view(-1, *shape)
    jacobian = torch.stack([single.perturb(unit).flatten() for unit in units])
    expected = jacobian.T @ jacobian
    spread = (expected.diagonal()[:, None] * expected.diagonal()).sqrt() + 1e-12
    assert float(((draws.T @ draws / len(draws) - expected) / spread).abs().max()) < 6 * (2 / len(draws)) ** 0.5


@pytest.mark.parametrize("name", [*PROBED, "conv_transposed", "encoder_tied"])
def test_products_tell_how_far_their_draws_spread(name, problems):
    """Var z'Rz = 2 (|R|^2 - |diag R|^2) for signs: that of all layers, and no less than that of each."""
    problem, positions = problems(name), [0, 2]
    tapes, count = list(problem.tapes(positions)), 256
    for tape in tapes:
        rows = [[row_of("test", p, draw, count) for p in tape.positions] for draw in range(count)]
        draws, norms, diagonal = remainder_probes(tape, rows, 3)
        assert torch.equal(draws[:, 5], probe_trace(tape, "remainder", rows[5], 3))
        bounds = 2 * (norms.mean(1) - diagonal)
        scale = float(norms.mean(1).sum(1).max()) + 1e-300
        assert (draws.var(1) <= 1.5 * bounds + 0.05 * scale).all()
        total = draws.sum(2).var(1)
        assert torch.allclose(total, bounds.sum(1), rtol=0.4, atol=0.02 * scale)


def test_a_further_product_knows_a_remainder_of_rank_one():
    """The outputs are (exp(c'W), 0): R is in proportion to cc', and its squares off the diagonal are a formula."""
    import genbound

    c = torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.7, -0.4]], dtype=D)

    def outputs(module, x):
        grown = torch.exp((module.weight * c).sum()) * x[:, :1]
        return torch.cat([grown, torch.zeros_like(grown)], 1)

    model = Apply(outputs, weight=torch.full((2, 3), 0.3, dtype=D))
    init = {"weight": torch.zeros(2, 3, dtype=D)}
    problem = genbound.Problem(model, init, (torch.ones(1, 1, dtype=D), torch.tensor([1])))
    tape = problem.tape([0])
    found = further_product(tape, [row_of("test", 0, 0, 1)], 1)
    grown = torch.exp((model.weight.detach() * c).sum())
    matrix = torch.sigmoid(grown) * grown * torch.outer(c.flatten(), c.flatten())
    assert float(found[0, 0]) == pytest.approx(float((matrix - matrix.diag().diag()).square().sum()), rel=1e-10)
