"""Operations that are easily carried wrong: a sweep agrees with the double backward pass or is refused."""

import pytest
import torch
from cases import D
from small_nets import Apply
from sweeping import double_backward, inputs_of, own_directions, problem_of
from test_rules import MIXED, SCALES, ramp
from torch import nn
from torch.nn import functional as F

from genbound.curvature.rules import Unsupported
from genbound.curvature.sweep import Sweep
from genbound.curvature.sweep_trial import can_sweep
from genbound.network.problem import Problem


@pytest.fixture(autouse=True)
def _readers_alone(monkeypatch):
    """Cut derivatives are refused before any reader sees them; here the readers are asked themselves."""
    monkeypatch.setattr("genbound.network.problem.check_derivatives", lambda network, names: ())


def _written(function):
    """A function that writes into its arguments and returns nothing, as one of its first argument."""
    return lambda a, b: (function(a, b), a)[1]


def _late(a, b):
    """The input of a ReLU is changed after it; autograd allows it, because it keeps the result."""
    h = a.relu()
    a += h @ MIXED
    return a


# What is easily carried wrong, on the results of two layers: right, or can_sweep must see that it is not.
RISKY = {
    "padded_with_a_number": lambda a, b: F.pad(a, (1, 1), value=2.0),
    "write_into_a_view": _written(lambda a, b: a[:, :3].mul_(0.1)),
    "zero_in_a_view": _written(lambda a, b: a[:, 0].zero_()),
    "rows_of_another": _written(lambda a, b: a[:, :3].copy_(b[:, 3:])),
    "view_of_what_is_written": lambda a, b: ((v := a[:, :3]), a.mul_(0.1), v)[2],
    "input_changed_later": _late,
    "constant_buffer": lambda a, b: torch.zeros_like(a.detach()).add_(a * b),
    "slices_of_a_buffer": lambda a, b: ((z := torch.zeros(len(a), 6, dtype=D)).__setitem__(slice(None), a), z)[1],
    "power_in_place": lambda a, b: a.pow_(2),
    "filled": lambda a, b: a.fill_(1.0) * b,
    "overwritten": lambda a, b: a.copy_(b),
    "partly_detached": lambda a, b: a - 0.7 * a.detach(),
    "straight_through": lambda a, b: a + (a.round() - a).detach(),
    "complex_numbers": lambda a, b: torch.fft.rfft(a).real,
    "wider_exponent": lambda a, b: (1 + a[:, :1].square()).pow(SCALES),
    "wider_bound": lambda a, b: a[:, :1].clamp(min=ramp(6, low=-0.5, high=0.5)),
    "instance_norm": lambda a, b: F.instance_norm(a.view(-1, 2, 3)),
    "layer_norm_by_weights": lambda a, b: torch.cat(
        [F.layer_norm(x, (6,), y)[None] for x, y in zip(a, b, strict=True)]
    ),
    "glu": lambda a, b: F.glu(a),
    "position_first": lambda a, b: (a.view(-1, 3, 2).transpose(0, 1).contiguous() ** 2).transpose(0, 1),
    "one_by_one": lambda a, b: torch.stack([torch.dot(x, y) for x, y in zip(a, b, strict=True)])[:, None],
    "cosine": lambda a, b: F.cosine_similarity(a, b)[:, None] * b,
    "solve": lambda a, b: torch.linalg.solve(a[:, :4].view(-1, 2, 2) + 3 * torch.eye(2, dtype=D), b.view(-1, 2, 3)),
}


def around(function, activation):
    def run(net, x):
        return net.last(activation(net.mid(function(net.first(x), net.second(x)).flatten(1))))

    size = function(torch.rand(2, 6, dtype=D), torch.rand(2, 6, dtype=D)).flatten(1).shape[1]
    return Apply(run, first=nn.Linear(4, 6), second=nn.Linear(4, 6), mid=nn.Linear(size, 5), last=nn.Linear(5, 3)).to(D)


def agrees(problem, positions):
    """Whether remainder and Hessian are those of the double backward pass, along a direction in all layers."""
    tape, sweep = problem.tape(positions), Sweep(problem, positions)
    _, us = own_directions(sweep)
    us = {layer: u for layer, u in us.items() if tape.uses[layer]}
    expected = [double_backward(tape, us, part) for part in ("remainder", "hessian")]
    size = max(float(e.abs().max()) for e in expected)
    assert size > 1e-3
    found = sweep.remainder(us), sweep.hessian(us)
    return all(float((f - e).abs().max()) <= 1e-9 * size for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("activation", [F.silu, F.relu], ids=["curved", "piecewise"])
@pytest.mark.parametrize("name", RISKY)
def test_agrees_or_is_refused(name, activation):
    """Where no layer is curved, a wrong tangent still spoils the Gauss-Newton part of the Hessian."""
    problem = problem_of(around(RISKY[name], activation), inputs_of(False))
    assert not can_sweep(problem) or agrees(problem, range(5))


def test_agrees_or_is_refused_where_the_first_samples_have_no_gradient():
    """0 agrees with 0: the trial must not depend on the loss."""
    model, x = around(RISKY["padded_with_a_number"], F.silu), inputs_of(False, 10)
    problem_of(model, x)  # its weights
    scores = model(x).detach()
    y = torch.cat([scores[:5].argmin(1), scores[5:].argmax(1)])
    losses = F.cross_entropy(scores, y, reduction="none")
    assert losses[:5].min() > losses[5:].max()
    clip = f"clip:{float(losses[:5].min() + losses[5:].max()) / 2}"
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    problem = Problem(model, init, (x, y), dtype=D, batch_size=5, loss_range=clip)
    assert not can_sweep(problem) or agrees(problem, range(5, 10))


@pytest.mark.parametrize(
    ("name", "said"),
    [("twice", "same.weight acts more than once"), ("siamese", "twin.weight acts more than once")],
)
def test_a_refusal_says_why(name, said, problems):
    with pytest.raises(Unsupported, match=said):
        Sweep(problems(name), [0, 1])


def test_writing_into_a_constant_is_refused():
    problem = problem_of(around(RISKY["slices_of_a_buffer"], F.silu), inputs_of(False))
    with pytest.raises(Unsupported, match="copy_ writes into its arguments"):
        Sweep(problem, [0, 1])
