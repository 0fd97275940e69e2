"""The analysis against numbers had another way."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import genbound


def test_verdicts(study):
    claims = study.claims
    assert claims.near_one(0.9, 1.1) == "holds" and claims.near_one(2.0, 2.4) == "does not hold"
    assert claims.near_one(0.9, 1.3) == claims.near_one(0.5, 2.0) == "cannot be tested here"
    assert (
        claims.of_each(["holds", "holds"]) == "holds" and claims.of_each(["holds", "does not hold"]) == "holds in part"
    )
    assert claims.of_each(["cannot be tested here", "does not hold"]) == "does not hold"
    assert claims.of_each(["cannot be tested here", "holds"]) == "cannot be tested here"
    assert claims.follows((0.2, 0.5), (0.1, 0.4)) == "holds"
    assert claims.follows((0.2, 0.5), (-0.1, 0.4)) == "holds in part"
    assert claims.follows((-0.2, 0.1), (-0.1, 0.4)) == "does not hold"
    assert claims.follows((-0.2, 0.5), (-0.1, 0.4)) == "cannot be tested here"
    assert claims.reaches(1.0, 8.0, 6.43) == "holds" and claims.reaches(1.0, 4.0, 6.43) == "holds in part"
    assert claims.reaches(-1.0, 4.0, 6.43) == "does not hold"
    assert claims.reaches(-1.0, 9.0, 6.43) == claims.reaches(*claims.t_interval([3.0]), 6.43) == "cannot be tested here"
    low, high = claims.t_interval([1.0, 2.0, 3.0, 6.0])
    assert (low, high) == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0, 6.0], 0).confidence_interval())


def made(num, stream, **more):
    """Cells in which the Hessian measure is the training loss with some noise, and the gap follows the latter."""
    found = []
    for i in range(num):
        loss = float(stream.normal())
        bounds = {"hessian_distance": {"value": -loss + float(stream.normal()) * 0.7, "log10": None}}
        found.append({
            "name": f"{i:02}", "task": "digits", "group": "clean", "stopping": "loss", "reached": True, "seed": 0,
            "lr": 0.1, "hyperparameters": {"method": f"m{i // 2}"},
            "gap": {"loss": -loss + 0.2 * float(stream.normal())},
            "training": {"loss": loss}, "trivial": {"training loss": loss}, "noise": "",
            "measures": {"measurement": {"bounds": bounds}, "training": {"bounds": copy.deepcopy(bounds)}}, **more,
        })  # fmt: skip
    return found


def test_the_difference_between_two_coefficients(study):
    """Value by scipy; the interval over the same clusters spelled out one by one."""
    own = made(16, np.random.default_rng(0))
    value, low, high = study.tracking.difference(study.tracking.table(own), "hessian_distance", "training loss")
    x = np.array([cell["measures"]["measurement"]["bounds"]["hessian_distance"]["value"] for cell in own])
    y, gap = (np.array([cell[a][b] for cell in own]) for a, b in (("trivial", "training loss"), ("gap", "loss")))
    size = lambda side, i: abs(stats.kendalltau(side[i], gap[i]).statistic)  # noqa: E731
    everyone = np.arange(16)
    assert value == pytest.approx(size(x, everyone) - size(y, everyone)) and value < 0
    drawn = np.random.default_rng([0, 0]).integers(0, 8, (study.tracking.RESAMPLES, 8))[:512]  # of its first block
    slow = [size(x, i) - size(y, i) for i in (np.concatenate([[2 * c, 2 * c + 1] for c in row]) for row in drawn)]
    assert (low, high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.06)


def test_the_interval_of_a_rise_over_its_approximation(study):
    """It holds the true ratio as often as it says, where both sides are estimates."""
    stream, held, pairs = np.random.default_rng(0), 0, 12
    for _ in range(2000):
        rises = 2.0 + stream.normal(size=pairs)
        sem = rises.std(ddof=1) / pairs**0.5
        row = {"rise": rises.mean(), "sem": sem, "approximation": 4 + 0.2 * stream.normal(), "approximation_sem": 0.2}
        _, low, high = study.noise_stability.ratio(row, pairs)
        held += low <= 0.5 <= high
    assert 0.93 <= held / 2000 <= 0.98
    row |= {"approximation": 0.2, "approximation_sem": 0.2}
    assert study.noise_stability.ratio(row, pairs)[1:] == (-np.inf, np.inf)
    assert study.noise_stability.interval((1.5, -np.inf, np.inf)) == "1.50, of what may be 0"


def test_noise_where_traces_are_negative(study):
    """Equal noise goes on every layer, and the approximation may be negative, as the rise then is."""
    import torch
    from torch import nn, tensor

    class Saddle(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(tensor([[1e-4, 1e-4]]))
            self.down = nn.Parameter(tensor([[1e-4, 1e-4]]))

        def forward(self, x):
            score = self.up.square().sum() - 2 * self.down.square().sum()
            return (x[:, :1] * 0 + score) * tensor([-0.5, 0.5])

    model, data = Saddle(), (torch.ones(8, 1), torch.zeros(8, dtype=torch.long))
    pair = SimpleNamespace(model=model, init=dict(model.state_dict()), head=(), init_buffers=None)
    measured = {"traces": {"up": 2.0, "down": -4.0}, "trace_sems": {"up": 0.1, "down": 0.1}, "total_trace_sem": 0.12}
    task = SimpleNamespace(sigmas=(0.01,), pairs=256)
    found = {row["shape"]: row for row in study.measure.stability(task, pair, data, measured, seed=0)["rows"]}
    equal, root = found["equal"], found["inverse root of the trace"]
    assert (equal["layers"], root["layers"]) == (2, 1)
    assert equal["approximation"] == pytest.approx(-0.5e-4 * 2) and root["approximation"] == pytest.approx(0.5e-4 * 2)
    assert equal["approximation_sem"] == pytest.approx(0.5e-4 * 0.12)
    for row in (equal, root):
        assert row["rise"] == pytest.approx(row["approximation"], abs=4 * row["sem"])


def test_covariances_of_each_layers_own(study):
    """Shapes are scaled to one approximation, and the rise of a quadratic loss is what it says."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    data = (torch.randn(40, 3), torch.randint(0, 3, (40,)))
    pair = SimpleNamespace(
        model=model, init={k: torch.zeros_like(v) for k, v in model.state_dict().items()}, head=(), init_buffers=None
    )
    problem = genbound.Problem(model, pair.init, data)
    rows = genbound.evaluate(problem, "hessian_trace").quantities["hessian_trace"]["layers"]
    traces = {name: row["value"] for name, row in rows.items()}
    measured = {"traces": traces, "trace_sems": dict.fromkeys(traces, 0.1), "total_trace_sem": 0.15}
    task = SimpleNamespace(sigmas=(0.01, 0.02), pairs=64)
    found = study.measure.stability(task, pair, data, measured, seed=0)["rows"]
    assert len(found) == 6
    for row in found:
        assert row["approximation"] == pytest.approx(0.5 * row["sigma"] ** 2 * sum(traces.values()), rel=1e-9)
        assert row["rise"] == pytest.approx(row["approximation"], abs=4 * row["sem"] + 0.05 * row["approximation"])
    assert study.measure.relative_rss([{"rise": 2.0, "approximation": 1.0}, {"rise": 1.0, "approximation": 1.0}]) == 0.2
