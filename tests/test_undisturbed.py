"""Measuring disturbs nothing."""

import random

import numpy as np
import pytest
import torch
from cases import CASES

import genbound
from genbound.network.problem import Problem
from genbound.quantities import QUANTITIES


def state(model):
    return (
        {name: t.clone() for name, t in model.state_dict().items()},
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.data_ptr() for p in model.parameters()],
        (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
        torch.is_grad_enabled(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("name", ["conv_silu", "encoder_tied", "weight_norm"])
def test_nothing_is_disturbed(name):
    model, init, inputs, targets = CASES[name].parts()
    model.train()
    next(model.modules()).training = False  # a mixture of modes, as a user may have left them
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 != 0)
        p.grad = torch.full_like(p, 0.5) if i % 2 else None
    given = {n: t.clone() for n, t in init.items()}
    data = {"labels": targets, **inputs} if isinstance(inputs, dict) else (inputs, targets)
    before = state(model)
    problem = Problem(model, init, data, batch_size=3)
    assert same(before, state(model))
    options = {
        "noise_stability": {"sigmas": (0.01,), "relative_sem": 5.0},
        "hessian_trace": {"exact_products": 0, "layer_sem": 5.0, "total_sem": 5.0},
        "loss_path": {"points": ()},
        "loss_plane": {"along": (), "across": ()},
        "hessian_spectrum": {"num_probes": 2, "num_steps": 2},
    }
    genbound.evaluate(problem, QUANTITIES, options=options)
    assert same(before, state(model))
    assert same(init, given)


def test_nothing_is_disturbed_by_a_refusal():
    model, init, inputs, targets = CASES["conv_relu"].parts()
    model.train()
    before = state(model)
    with pytest.raises(genbound.GenboundError):
        Problem(model, init, (inputs, targets + 7), batch_size=3)
    with pytest.raises(genbound.GenboundError):
        Problem(model, init, (inputs[:, :1], targets), batch_size=3)
    assert same(before, state(model))


@pytest.mark.parametrize(
    "around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)  # fmt: skip
def test_modes_of_the_caller_move_no_number(around):
    def numbers():
        model, init, inputs, targets = CASES["mlp_gelu"].parts()
        problem = Problem(model.float(), {n: t.float() for n, t in init.items()}, (inputs.float() + 0, targets))
        operator = genbound.hessian_operator(problem)
        measured = genbound.evaluate(problem, ["hessian_trace", "max_quadratic_form", "hessian_spectrum"])
        return operator @ np.ones(operator.shape[0]), measured.quantities

    product, quantities = numbers()
    with around():
        enabled = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        again, same_quantities = numbers()
        assert enabled == (
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        )  # fmt: skip
    assert np.abs(product).max() > 0
    np.testing.assert_array_equal(product, again)
    assert same_quantities == quantities


def test_a_later_change_of_the_model_does_not_move_the_problem():
    model, init, inputs, targets = CASES["mlp_gelu"].parts()
    problem = Problem(model, init, (inputs, targets))
    first = genbound.measure(problem, "losses")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert genbound.measure(problem, "losses") == first
