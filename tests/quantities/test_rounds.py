"""Rounds: what is refined side by side depends on the brackets alone, and certifies the same maximum."""

import numpy as np
import pytest
import torch
from torch import nn

import genbound
from genbound.engines.in_process import InProcess
from genbound.quantities import quadratic_brackets
from genbound.quantities.quadratic_brackets import next_round


def test_rounds_cover_the_open_samples_once_and_grow():
    stream = np.random.default_rng(0)
    upper, visited, rounds = 1 + stream.random(1000), set(), []
    lower = np.zeros(1000)
    lower[3], upper[3] = 1.2, 1.3
    while runs := next_round(len(rounds), lower, upper, visited, 0.0):
        rounds.append(runs)
    assert [len(runs[0]) for runs in rounds[:4]] == [4, 64, 64, 64] and [len(r) for r in rounds[:4]] == [1, 1, 2, 4]
    every = [p for runs in rounds for run in runs for p in run]
    assert len(every) == len(set(every)) and set(every) == {int(p) for p in np.flatnonzero(upper > 1.2)}
    assert every == sorted(every, key=lambda p: (-upper[p], p))
    assert next_round(0, lower, upper, set(), 0.5) == []  # closed to such a tolerance


class Shuffled(InProcess):
    """Computes the parts in another order, as several processes do."""

    def map(self, stage, items, function):
        parts = {index: function(items[index]) for index in reversed(range(len(items)))}
        self.titles = [*getattr(self, "titles", []), (stage.title, len(items))]
        return [parts[index] for index in range(len(items))]


@pytest.mark.parametrize("room", [1, 2**30])
@pytest.mark.parametrize("together", [2, 64])
def test_the_certified_maximum_holds_whatever_is_refined_side_by_side(monkeypatch, together, room):
    """Also where hardly any vectors have room, so that orthogonality is lost."""
    monkeypatch.setattr(quadratic_brackets, "TOGETHER", together)
    monkeypatch.setattr(quadratic_brackets, "FIRST", 1)
    stream = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=stream, dtype=torch.float64)
    init = {n: p.detach() + torch.randn(p.shape, generator=stream).double() for n, p in model.named_parameters()}
    # Samples that are nearly alike stay open until each is known.
    data = 1 + 0.01 * torch.randn(40, 3, generator=stream).double(), torch.zeros(40, dtype=torch.long)
    problem, options = (
        genbound.Problem(model, init, data, memory_budget=4 * room),
        {"max_quadratic_form": {"tolerance": 1e-9}},
    )
    engine = Shuffled()
    found = genbound.evaluate(problem, ["max_quadratic_form"], options=options, engine=engine)
    whole = genbound.evaluate(problem, ["max_quadratic_form"], options=options)
    assert found.quantities == whole.quantities
    assert together > 2 or max(num for title, num in engine.titles if "refine 3" in title) > 4
    for name, row in found.quantities["max_quadratic_form"]["layers"].items():
        v = (problem.params[name] - problem.init[name]).flatten()
        best = max(_form(problem, name, v, p) for p in range(40))
        assert row["lower"] - 1e-12 <= best <= row["upper"] + 1e-12
        assert row["upper"] - row["lower"] <= 1e-8 * row["upper"]


def _form(problem, name, v, position):
    """The positive part of one sample's own block, by its dense Hessian."""
    batch = problem.batch([position])

    def loss(flat):
        params = {**problem.params, name: flat.view(problem.params[name].shape)}
        return problem.loss.per_sample(problem.forward(params, batch.inputs), batch.targets).sum()

    values, vectors = torch.linalg.eigh(torch.func.hessian(loss)(problem.params[name].flatten()))
    return float((values.clamp(min=0) * (vectors.T @ v).square()).sum())
