"""Samples and layers whose tables lie on the disk: the same numbers as where they are in memory."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_nets import D, mlp
from torch import nn

import genbound
from genbound.estimators import disk_table
from genbound.estimators.disk_table import DiskTable
from genbound.evaluation import stage
from genbound.quantities.trace_by_blocks import blocks_of
from genbound.results.sample_rows import SampleRows, in_memory


@pytest.fixture
def large(monkeypatch):
    """Every table is taken for a large one, and stages come in runs of a few parts."""

    def shrink():
        monkeypatch.setattr(disk_table, "MOST", 512)
        monkeypatch.setattr(stage, "FIRST_RUN", 2)
        monkeypatch.setattr(stage, "ROOM", 1)

    return shrink


@pytest.fixture
def tables(monkeypatch):
    """Shapes of all tables on the disk."""
    shapes, init = [], DiskTable.__init__

    def noted(self, num, width, *dtype):
        shapes.append((num, width))
        init(self, num, width, *dtype)

    monkeypatch.setattr(DiskTable, "__init__", noted)
    return shapes


def problem(activation=nn.GELU, num=400, x_is=None, **more):
    torch.manual_seed(0)
    model, x, y = mlp(activation, n=num)()
    init = {name: p.detach() - 0.3 * torch.randn_like(p) for name, p in model.named_parameters()}
    return genbound.Problem(model, init, (x if x_is is None else x_is.expand_as(x), y), dtype=D, **more)


@pytest.mark.parametrize("maximum", ["certified", "found"])
def test_a_maximum_has_the_same_bytes(large, maximum, tmp_path):
    options = {"max_quadratic_form": {"maximum": maximum}}
    one = genbound.evaluate(problem(), ["hessian_distance"], options=options)
    large()
    found = genbound.evaluate(problem(), ["hessian_distance"], options=options, out=tmp_path)
    assert found.quantities == one.quantities
    assert isinstance(found.samples, SampleRows)
    pd.testing.assert_frame_equal(in_memory(found.samples), one.samples, check_exact=True)
    found.save(tmp_path)
    again = genbound.evaluate(problem(), ["hessian_distance"], options=options, out=tmp_path)  # from the store
    assert again.quantities == one.quantities
    assert all(again.cost["seconds"][name] == found.cost["seconds"][name] for name in one.quantities)
    pd.testing.assert_frame_equal(in_memory(again.samples), one.samples, check_exact=True)
    pd.testing.assert_frame_equal(genbound.load_results(tmp_path).samples, one.samples, check_exact=True)


ESTIMATED = {"dense_products": 0, "num_steps": 3, "num_probes": 2, "candidates": 8}


@pytest.mark.parametrize(
    ("name", "own", "activation", "num"),
    [
        ("layer_curvature", {"curvature": "hessian"}, nn.GELU, 256),
        ("layer_curvature", {"curvature": "ggn"}, nn.GELU, 192),
        ("layer_curvature", {"curvature": "fisher", "exact_outputs": 1}, nn.GELU, 192),
        ("relative_flatness", {}, nn.ReLU, 192),
        ("max_positive_trace", {}, nn.GELU, 256),
        ("max_positive_trace", ESTIMATED, nn.GELU, 256),
        ("max_positive_trace", ESTIMATED, nn.GELU, 192),
    ],
)
def test_what_is_asked_for_by_name_has_the_same_bytes(large, tables, name, own, activation, num, tmp_path):
    """A part of the samples is looked at anew for a maximum of traces: these are of others, chosen by size."""
    options = {name: own, "hessian_trace": {"max_probes": 2}}

    def found(**out):
        return genbound.evaluate(problem(activation, 256, num_samples=num), [name], options=options, **out)

    one = found()
    assert not tables
    if name == "max_positive_trace":
        assert one.quantities["hessian_trace"].get("choice") == ("size" if num < 256 else None)
    large()
    for many in (found(out=tmp_path), found(out=tmp_path)):  # the second from the store
        assert many.quantities[name] == one.quantities[name]
        assert (num, 3) in tables
        column = [] if one.samples is None else [c for c in one.samples.columns if c.startswith(name)]
        if column:
            assert isinstance(many.samples, SampleRows)
            pd.testing.assert_frame_equal(in_memory(many.samples)[column], one.samples[column], check_exact=True)


def test_exact_traces_are_the_same(large):
    one = genbound.evaluate(problem(nn.ReLU), ["hessian_trace"])
    large()
    assert len(blocks_of(problem(nn.ReLU))) > 2
    found = genbound.evaluate(problem(nn.ReLU), ["hessian_trace"])
    for name, row in one.quantities["hessian_trace"]["layers"].items():
        other = found.quantities["hessian_trace"]["layers"][name]
        assert other["value"] == pytest.approx(row["value"], rel=1e-13) and other["sem"] == row["sem"] == 0
    pd.testing.assert_frame_equal(in_memory(found.samples), one.samples, rtol=1e-13)


@pytest.mark.parametrize("more", [{}, {"num_samples": 300}])
def test_drawn_traces_have_their_errors(large, more):
    """Over seeds, against the exact ones, by blocks: of all samples, and of some that are chosen by size."""
    exact = genbound.evaluate(problem(), ["hessian_trace"]).quantities["hessian_trace"]
    assert exact["num_probes"] == 0
    large()
    drawn = {"exact_products": 0, "small_probes": 1, "layer_sem": 0.05, "total_sem": 0.01}
    scores, sems = [], []
    for seed in range(12):
        chosen = problem(sample_seed=seed, **more)
        found = genbound.evaluate(chosen, ["hessian_trace"], seed=seed, options={"hessian_trace": drawn})
        for name, row in exact["layers"].items():
            other = found.quantities["hessian_trace"]["layers"][name]
            error = np.hypot(other["sem"], other["data_sem"])
            scores.append((other["value"] - row["value"]) / error if error else 0.0)
            sems.append(other["sem"])
            assert (other["data_sem"] > 0) == bool(more)
    assert np.abs(scores).max() < 4 and 0.5 < np.std(scores) < 1.4
    assert max(sems) > 0


def test_blocks_have_random_numbers_of_their_own(large):
    """Of samples that are all alike no two blocks have the same draws."""
    alike = problem(x_is=torch.ones(1))
    large()
    drawn = {"exact_products": 0, "small_probes": 1}
    found = genbound.evaluate(alike, ["hessian_trace"], options={"hessian_trace": drawn})
    table, size = in_memory(found.samples), len(blocks_of(alike)[0])
    values = table.pivot(index="sample", columns="layer", values="hessian_trace").to_numpy()
    assert not np.allclose(values[:size], values[size : 2 * size])
