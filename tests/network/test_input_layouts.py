"""Images whose channels lie last in memory, as those of permuted arrays do: the same answers as of copied ones."""

import pytest
import torch
from small_nets import labels
from torch import nn

import genbound
from genbound.quantities.squared_path_norm import applies_to, log_path_norm

D = torch.float64


POOLINGS = (nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(2))


@pytest.fixture(params=POOLINGS, ids=repr)
def problems(request):
    """Of images ``[5, 4, 4, 2]`` permuted, and of the same ones copied."""
    torch.manual_seed(0)
    num = 6 * request.param(torch.zeros(1, 6, 4, 4))[0, 0].numel()
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), request.param, nn.Flatten(), nn.Linear(num, 3)
    ).to(D).eval()  # fmt: skip
    x = torch.randn(5, 4, 4, 2, dtype=D).permute(0, 3, 1, 2)
    init = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    assert not x.is_contiguous()
    return [genbound.Problem(model, init, (x, labels(5, 3)), dtype=D) for x in (x, x.contiguous())]


def test_the_network_is_known_to_be_piecewise_linear(problems):
    for problem in problems:
        assert problem.tape([0, 1]).piecewise_linear == {"0.weight", "5.weight"}


def test_the_path_norm_and_the_bounds_are_the_same(problems):
    assert [applies_to(problem) for problem in problems] == [None, None]
    one, other = (log_path_norm(problem) for problem in problems)
    assert one == pytest.approx(other, rel=1e-12)
    names = ["hessian_distance", "hessian_trace", "trace_distance", "gouk2021", "distance_spectral"]
    found = [genbound.evaluate(problem, names, seed=0) for problem in problems]
    values = [[results.bounds[name]["value"] for name in names if name != "hessian_trace"] for results in found]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    traces = [results.quantities["hessian_trace"]["total"] for results in found]
    assert traces[0]["value"] == pytest.approx(traces[1]["value"], rel=1e-9)
    assert traces[0]["sem"] == traces[1]["sem"] == 0
