"""A layer that only some samples are passed through, as an expert that a router picks."""

import pytest
import torch
from small_nets import D
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

import genbound


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.expert, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        mixed, picked = torch.zeros_like(x), x[:, 0] > 0
        mixed[picked] = self.expert(x[picked])
        return self.last(mixed)


def test_samples_that_do_not_reach_a_layer_have_no_curvature_there():
    torch.manual_seed(0)
    model, x, y = Routed().to(D), torch.randn(8, 4, dtype=D), torch.arange(8) % 3
    x[:, 0] = x[:, 0].abs() * (torch.arange(8) % 2 - 0.5)  # every other one
    params = {name: p.detach() for name, p in model.named_parameters()}
    init = {name: p - 0.1 * torch.randn_like(p) for name, p in params.items()}
    problem = genbound.Problem(model, init, (x, y), dtype=D)
    found = genbound.evaluate(problem, ["hessian_trace", "max_quadratic_form"]).quantities
    for name in ("expert.weight", "last.weight"):
        v, forms, traces = (params[name] - init[name]).flatten(), [], []
        for one, label in zip(x, y, strict=True):

            def loss(w, one=one, label=label, name=name):
                return cross_entropy(functional_call(model, {**params, name: w}, (one[None],)), label[None])

            block = hessian(loss)(params[name]).reshape(len(v), -1)
            forms.append(float(v @ block @ v))
            traces.append(float(block.trace()))
        assert min(traces) == 0.0 or name != "expert.weight"
        assert found["hessian_trace"]["layers"][name]["value"] == pytest.approx(sum(traces) / len(traces), rel=1e-9)
        row = found["max_quadratic_form"]["layers"][name]
        assert row["lower"] * (1 - 1e-9) <= max(forms) <= row["upper"] * (1 + 1e-9) and row["upper"] > 0
