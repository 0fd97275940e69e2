"""A layer that only some samples use otherwise: a sweep refuses them, and never counts the layer as absent."""

import pytest
import torch
from torch import nn

from genbound.curvature.rules import Unsupported
from genbound.curvature.sweep import Sweep
from genbound.curvature.sweep_trial import can_sweep
from genbound.network.problem import Problem


class OtherwiseIfLong(nn.Module):
    """Applies its layer to short samples as layers do, and to long ones by the functions given."""

    def __init__(self, otherwise):
        super().__init__()
        self.layer, self.head, self.otherwise = nn.Linear(4, 3), nn.Linear(3, 2), otherwise

    def forward(self, x):
        z = self.layer(x) if x.shape[1] < 5 else self.otherwise(x, self.layer.weight)
        return self.head(torch.tanh(z).mean(1))


OTHERWISE = {
    "entry by entry": lambda x, w: (x.unsqueeze(-2) * w).sum(-1),
    "a copy of the weight": lambda x, w: x @ (2 * w).T,
    "on the left": lambda x, w: (w @ x.mT).mT,
    "rows in two parts": lambda x, w: torch.cat([x @ w[:1].T, x @ w[1:].T], -1),
}


def problem_of(otherwise):
    torch.manual_seed(0)
    model = OtherwiseIfLong(otherwise).double()
    batches = [(torch.randn(4, length, 4, dtype=torch.float64), torch.arange(4) % 2) for length in (3, 6)]
    return Problem(model, {name: torch.zeros_like(p) for name, p in model.named_parameters()}, batches)


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_sweep_of_the_other_samples_is_refused(name):
    problem = problem_of(OTHERWISE[name])
    assert can_sweep(problem)  # the first samples are short
    assert Sweep(problem, range(4)).starts.keys() == {"layer.weight", "head.weight"}
    with pytest.raises(Unsupported, match="layer.weight is used by other operations for some samples"):
        Sweep(problem, range(4, 8))


def test_a_layer_that_some_samples_pass_by_is_no_part_of_their_sweep():
    problem = problem_of(lambda x, w: x[..., :3])
    assert Sweep(problem, range(4, 8)).starts.keys() == {"head.weight"}
