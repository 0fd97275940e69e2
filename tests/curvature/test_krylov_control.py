"""What a few products know of a sample's remainder: against the dense remainder in the weights."""

import pytest
import torch
from cases import CASES, D
from sweeping import close, own_directions, problem_of
from torch import nn

from genbound.curvature import krylov_control
from genbound.curvature.krylov_control import KrylovControl
from genbound.curvature.sweep import Sweep
from genbound.curvature.traces import dense_remainder_trace, joint_trace, joint_trace_controlled, sweep_directions
from genbound.estimators.random import row_of

NAMES = ("mlp_gelu", "conv_silu", "encoder")


def curved(problem):
    return [layer.name for layer in problem.layers if layer.curved_by]


def weights_of(problem, names, rows, seed=0):
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, *problem.params[name].shape, dtype=D, generator=source) for name in names}


def dense_remainder(problem, position, names):
    """R of one sample in the weights of the layers, blocks between them included, from products with unit weights."""
    tape = problem.tape([position], names)
    columns = []
    for name in names:
        for unit in torch.eye(problem.params[name].numel(), dtype=D):
            us = [use.perturb(unit.view(problem.params[name].shape)) for use in tape.uses[name]]
            products = tape.activation_products({name: us}, names, "remainder")
            columns.append(torch.cat([tape.adjoint(other, products[other])[0].flatten() for other in names]))
    return torch.stack(columns, 1)


def gradient(problem, position, names):
    tape = problem.tape([position], names)
    found = tape.backward(tape.output_gradient(), names)
    return torch.cat([tape.adjoint(name, found[name])[0].flatten() for name in names])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num", [1, 3])
def test_it_is_the_form_of_the_deflated_remainder(name, num):
    """c(z) - E[c] = z'(PR + RP - PRP)z - Tr(PR), with P from a dense QR of the Krylov vectors."""
    problem = CASES[name].problem()
    names = curved(problem)
    r, g = dense_remainder(problem, 2, names), gradient(problem, 2, names)
    krylov = [g]
    for _ in range(num - 1):
        krylov.append(r @ krylov[-1])
        krylov[-1] /= krylov[-1].norm()
    q = torch.linalg.qr(torch.stack(krylov, 1))[0]
    p = q @ q.T
    known = p @ r + r @ p - p @ r @ p
    control = KrylovControl(problem, 2, names, num)
    assert control.num == num
    v = weights_of(problem, names, 6)
    sweep = Sweep(problem, [2] * 6)
    us = {n: sweep.uses[n].per_sample(sweep.uses[n].perturb(v[n])) for n in names}
    z = torch.cat([v[n].flatten(1) for n in names], 1)
    expected = ((z @ known) * z).sum(1) - (p @ r).trace()
    close(control.values(us, num), expected, 1e-9, float(known.norm()))
    close(control.values(us, 0), torch.zeros(6, dtype=D))


def test_fewer_vectors_are_the_first_ones():
    problem = CASES["mlp_gelu"].problem()
    names = curved(problem)
    sweep = Sweep(problem, [1] * 4)
    _, us = own_directions(sweep)
    us = {n: sweep.uses[n].per_sample(us[n]) for n in names}
    close(KrylovControl(problem, 1, names, 4).values(us, 2), KrylovControl(problem, 1, names, 2).values(us, 2))


def test_an_exhausted_space_leaves_nothing_to_chance_but_own_noise_and_no_vector_more():
    """One curved layer of six weights: all of R is known from the Krylov space, and c is the form itself."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3))
    problem = problem_of(model, torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(0)))
    names = ["0.weight"]
    control = KrylovControl(problem, 0, names, 50)
    assert 0 < control.num <= 2  # x is one position: the block lives in out x 1 numbers
    sweep = Sweep(problem, [0] * 5)
    u = sweep.uses["0.weight"].perturb(weights_of(problem, names, 5)["0.weight"])
    form = sweep.remainder({"0.weight": u})
    trace = dense_remainder_trace(problem.tape([0], names))[0, 0]
    close(control.values({"0.weight": sweep.uses["0.weight"].per_sample(u)}, 50), form - trace)


def test_a_sample_without_a_gradient_has_no_control(monkeypatch):
    problem = CASES["mlp_gelu"].problem()
    names = curved(problem)
    sweep = Sweep(problem, [0] * 3)
    us = {n: sweep.uses[n].per_sample(u) for n, u in own_directions(sweep)[1].items() if n in names}
    tape = type(problem.tape([0], names))
    monkeypatch.setattr(tape, "output_gradient", lambda self: torch.zeros_like(self.outputs))
    control = KrylovControl(problem, 0, names, 4)
    assert control.num == 0 and not control.values(us, 4).any()


def test_memory_that_holds_fewer_vectors_has_fewer(monkeypatch):
    problem = CASES["mlp_gelu"].problem()
    names = curved(problem)
    tape = problem.tape([0], names)
    size = 8 * sum(g.numel() for gs in tape.backward(tape.output_gradient(), names).values() for g in gs)
    monkeypatch.setattr(krylov_control, "vector_room", lambda budget: krylov_control.HELD * size * 2 + size)
    assert KrylovControl(problem, 0, names, 4).num == 2
    monkeypatch.setattr(krylov_control, "vector_room", lambda budget: 0)
    assert KrylovControl(problem, 0, names, 4).num == 0


@pytest.mark.parametrize("name", NAMES)
def test_controlled_draws_have_the_mean_of_the_dense_remainder_and_less_spread(name):
    """4,000 joint draws of one sample with and without four vectors."""
    problem = CASES[name].problem(batch_size=400)
    names = curved(problem)
    control, sweep = KrylovControl(problem, 2, names, 4), Sweep(problem, [2] * 400)
    rows = [[row_of("test", 2, 400 * i + j, 4000) for j in range(400)] for i in range(10)]
    found = torch.cat([joint_trace_controlled(sweep, names, own, 0, control, [0, 2, 4]) for own in rows])
    assert torch.equal(found[:, 0], found[:, 1])
    truth = dense_remainder_trace(problem.tape([2], names)).sum()
    sem = found.std(0) / 4000**0.5
    assert ((found.mean(0) - truth).abs() < 4 * sem + 1e-9).all()
    close(joint_trace(sweep, names, rows[0], 0, control), found[:400, 3])
    # What is taken off a draw whose own noise is all drawn is a part of its spread: it can only be less.
    plain = torch.cat([sweep.remainder(sweep_directions(sweep, names, own, 0)) for own in rows])
    for column in (2, 3):
        assert (plain - (found[:, 0] - found[:, column])).var() < 0.95 * plain.var()
