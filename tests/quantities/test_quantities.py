"""What holds for several quantities: options that are refused, losses without curvature, one sample, overflow."""

import numpy as np
import pytest
import torch
from cases import CASES
from small_nets import mlp
from torch import nn

import genbound
from genbound.errors import GenboundError
from genbound.network.problem import Problem


@pytest.mark.parametrize(
    ("name", "options"),
    [("hessian_trace", {"num_pilot": 1}), ("hessian_trace", {"num_factors": 1}), ("hessian_trace", {"layer_sem": 0.0}),
     ("hessian_trace", {"max_probes": 0}), ("hessian_trace", {"total_sem": -1.0}),
     ("max_quadratic_form", {"tolerance": 0.0}), ("max_quadratic_form", {"tolerance": 1.0}),
     ("max_quadratic_form", {"max_products": 0}), ("max_quadratic_form", {"convention": "papers"}),
     ("max_quadratic_form", {"convention": "paper-code", "paper_batch_size": 0}),
     ("noise_stability", {"sigmas": ()}), ("noise_stability", {"sigmas": (0.0, 1.0)}),
     ("noise_stability", {"sigmas": (0.2, 0.1)}), ("noise_stability", {"num_shared": 0}),
     ("noise_stability", {"sigmas": (float("nan"),)}), ("noise_stability", {"relative_sem": 0.0}),
     ("max_positive_trace", {"num_probes": 1}), ("max_positive_trace", {"candidates": 0}),
     ("max_positive_trace", {"finalists": 0}), ("max_positive_trace", {"num_steps": 0}),
     ("hessian_trace", {"nonsense": 1})],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(name, options, problems):
    with pytest.raises(GenboundError):
        genbound.measure(problems("mlp_gelu"), name, **options)


def test_a_loss_that_is_flat_everywhere_is_reported_as_zero():
    """Every sample above the ceiling: no curvature, no noise stability, no NaN without a reason, and a table."""
    problem = CASES["mlp_gelu"].problem(loss_range="clip:1e-6")
    measures = ["hessian_trace", "noise_stability", "max_positive_trace", "hessian_distance"]
    results = genbound.evaluate(problem, measures, options={"noise_stability": {"sigmas": (0.001,)}})
    assert results.quantities["hessian_trace"]["total"]["value"] == 0.0
    assert all(row["upper"] == 0 for row in results.quantities["max_quadratic_form"]["layers"].values())
    assert "hessian_distance" in results.to_markdown()
    assert results.bounds["hessian_distance"]["value"] == 0.0


def test_one_sample():
    build = mlp(nn.GELU, n=1)
    torch.manual_seed(0)
    model, x, y = build()
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    measures = [
        "hessian_trace", "max_quadratic_form", "max_positive_trace", "noise_stability", "hessian_distance",
        "trace_distance",
    ]  # fmt: skip
    results = genbound.evaluate(Problem(model, init, (x, y)), measures)
    assert not results.notes and "hessian_distance" in results.to_markdown()
    assert np.isfinite(results.bounds["hessian_distance"]["value"])


def test_numbers_that_are_not_finite_name_the_sample():
    """The first samples are fine, a later one overflows."""
    x = torch.ones(9, 2)
    x[7] = 3e38
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    problem = Problem(model, {"weight": torch.zeros(2, 2)}, (x, torch.arange(9) % 2))
    with pytest.raises(GenboundError, match="sample 7"):
        genbound.evaluate(problem, ["losses"])
    for quantity in ("hessian_trace", "max_quadratic_form", "noise_stability"):
        with pytest.raises(GenboundError, match="sample 7"):
            genbound.measure(problem, quantity)
