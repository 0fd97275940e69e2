"""The mean of a layer's own noise in place of its draw.

It is right whichever way the noise comes, and exact where it is all there is.
"""

import pytest
import torch
from cases import D
from sweeping import close, drawn, own_directions, problem_of
from torch import nn
from torch.nn import functional as F

from genbound.curvature.sweep import Sweep
from genbound.curvature.sweep_trial import can_sweep
from genbound.curvature.traces import dense_remainder_trace, joint_trace


class Ways(nn.Module):
    """A layer's result y reaches a curved operation by two ways, or by one; tokens or not."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 4)
        self.head, self.kind = nn.Linear(4, 3, bias=False), kind

    def forward(self, x):
        y, z = self.a(x), self.b(x)
        h = {
            "around": lambda: torch.tanh(y + F.gelu(y)),
            "gate": lambda: y * torch.sigmoid(y),
            "square": lambda: y * y,
            "product": lambda: y * z,
            "late": lambda: torch.tanh(y) * (z + y),
            "added": lambda: torch.tanh(2 * y[..., :4] - z.reshape(y.shape) / 3),
            "twice": lambda: torch.tanh(y) + torch.sigmoid(0.5 * y),
            "rectified": lambda: torch.tanh(F.relu(y).mT.clone().mT),
            "meeting": lambda: torch.tanh(y + torch.sin(z) + z),
        }[self.kind]()
        return self.head(torch.tanh(self.c(h)).mean(1))


# Operations that see the noise without a's and b's own; another is the tanh behind c.
APART = {
    "around": 1,
    "gate": 1,
    "square": 0,
    "product": 1,
    "late": 1,
    "added": 1,
    "twice": 2,
    "rectified": 1,
    "meeting": 1,
}


def mean_over_directions(problem, positions):
    """Exact mean of ``mean_remainder`` over weights of variance 1.

    It is a constant and a quadratic form, whose trace unit weights give.
    """
    sweep = Sweep(problem, positions)
    zero = {name: torch.zeros(sweep.shape(name), dtype=D) for name in sweep.starts}
    constant = sweep.mean_remainder(zero)
    total = constant.clone()
    for name in sweep.starts:
        use = sweep.uses[name]
        for unit in torch.eye(problem.params[name].numel(), dtype=D):
            u = use.perturb(unit.view(problem.params[name].shape).expand(len(positions), *problem.params[name].shape))
            total += sweep.mean_remainder({**zero, name: u.reshape(sweep.shape(name))}) - constant
    return sweep, constant, total


@pytest.mark.parametrize("kind", APART)
def test_the_mean_of_own_noise_is_right_whichever_way_it_comes(kind):
    torch.manual_seed(4)
    problem = problem_of(Ways(kind), torch.randn(3, 2, 3, dtype=D))
    assert can_sweep(problem)
    sweep, constant, total = mean_over_directions(problem, [0, 1, 2])
    close(total, dense_remainder_trace(problem.tape([0, 1, 2])).sum(1), 1e-9)
    marked = [step for step in sweep.steps if step.apart]
    assert len(marked) == APART[kind] + 1 and constant.any()


@pytest.mark.parametrize(
    "name", ["mlp_gelu", "conv_silu", "conv_transposed", "gpt_conv1d", "encoder", "tokens", "time_first"]
)
def test_the_mean_of_own_noise_is_right(name, problems):
    problem, positions = problems(name), problems(name).shared_run(3)
    sweep, _, total = mean_over_directions(problem, positions)
    close(total, dense_remainder_trace(problem.tape(positions)).sum(1), 1e-9)
    assert any(step.apart for step in sweep.steps)


def test_own_noise_in_front_of_one_curved_operation_is_certain(problems):
    """Two layers with a function of single entries between them: the mean is all there is."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3, bias=False))
    problem, positions = problem_of(model, torch.randn(4, 4, dtype=D)), [0, 1, 3]
    draws = drawn(problem, positions, joint_trace)
    assert float(draws.std(0).max()) < 1e-12
    close(draws[0], dense_remainder_trace(problem.tape(positions)).sum(1))
    sweep = Sweep(problem, positions)  # plain draws of a block with cross terms do spread
    spread = torch.stack([sweep.remainder(own_directions(sweep, seed)[1]) for seed in range(20)]).std(0)
    assert float(spread.min()) > 1e-3
