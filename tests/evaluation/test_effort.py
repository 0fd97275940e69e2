"""What a default evaluation may take: what is left out of it, and what it says of that."""

import json
from types import SimpleNamespace

import pytest
import torch
from cases import CASES
from small_nets import Residual
from torch import nn

import genbound
from genbound.cli.options import PAIR_OPTIONS
from genbound.errors import GenboundError
from genbound.evaluation import effort
from genbound.evaluation.effort import EFFORTS, GRADIENTS, PASSES, SECONDS, SHARE, SMALL, plan
from genbound.evaluation.selection import select
from genbound.quantities import QUANTITIES
from genbound.quantities.decompositions import of_a_pass, of_convolutions, of_eigenvalues


def deep(num=8, total=8, width=192, depth=20, classes=3):
    """Twenty layers, wide enough that nothing of it is small."""
    torch.manual_seed(0)
    model = Residual(width, depth, classes)
    init = {name: 0.9 * p.detach() for name, p in model.named_parameters()}
    data = (torch.randn(total, model.fc.in_features), torch.arange(total) % 3)
    return genbound.Problem(model, init, data, num_samples=num)


def planned(problem, effort="standard", measures=None, options=None):
    return plan(problem, select(measures, options or {}), effort)


def costs(problem, found):
    """Gradients of single samples that the quantities of a plan take, but for those that take seconds."""
    weights = sum(layer.num_weights for layer in problem.layers)
    kept = {name: options for name, options in found.selection.options.items() if name in found.gradients}
    cost = {name: QUANTITIES[name].gradients(problem, kept[name]) * problem.num_samples for name in kept}
    free = {name for name, value in cost.items() if value * weights <= SMALL}
    work = 3 * of_a_pass(problem)
    free |= {name for name, value in cost.items() if QUANTITIES[name].of_weights and value * work <= SECONDS}
    return {name: value for name, value in cost.items() if name not in free}


def whole(problem):
    """Those that they may take."""
    return GRADIENTS * problem.num_samples + PASSES * len(problem.data)


@pytest.mark.parametrize(
    "arguments", [{}, {"num": 64, "total": 500}, {"classes": 1000}, {"num": 300, "total": 300, "depth": 40}]
)
def test_nothing_takes_more_than_a_default_evaluation_may(arguments):
    problem = deep(**arguments)
    found = planned(problem)
    cost = costs(problem, found)
    assert sum(cost.values()) <= whole(problem)
    assert max(cost.values()) <= SHARE * whole(problem)
    assert {"losses", "hessian_trace", "max_quadratic_form"} <= found.selection.options.keys()
    assert found.selection.options["max_quadratic_form"].maximum == "found"
    assert any("maximum found in place of certified" in remark for remark in found.remarks)


@pytest.mark.parametrize("num", [8, 24])
def test_few_samples_have_their_noise_stability(num):
    problem = deep(num=num, total=num)
    found = planned(problem)
    assert "noise_stability" in found.selection.options
    assert found.gradients["noise_stability"] <= SHARE * (GRADIENTS + PASSES)
    assert any("noise_stability is measured with" in remark for remark in found.remarks)


@pytest.mark.parametrize(("num", "total"), [(8, 8), (12, 12), (12, 60)])
def test_few_images_have_their_noise_stability_at_some_sigmas(num, total, monkeypatch):
    """Noisy passes through convolutions take twice as much; a grid of three sigmas fits, and that is said."""
    monkeypatch.setattr(effort, "SMALL", 0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    init = {name: 0.9 * p.detach() for name, p in net.named_parameters()}
    problem = genbound.Problem(net, init, (torch.randn(total, 3, 8, 8), torch.arange(total) % 5), num_samples=num)
    found = planned(problem)
    assert found.selection.options["noise_stability"].sigmas == (0.001, 0.005, 0.02)
    assert any("sigmas 0.001,0.005,0.02 in place of 0.001,0.002" in remark for remark in found.remarks)
    assert found.gradients["noise_stability"] * num <= SHARE * whole(problem)


def test_what_is_left_out_says_what_it_takes_and_what_measures_it():
    problem = deep()
    found = planned(problem)
    note = found.left_out["max_positive_trace"]
    assert "gradients over the measured samples" in note and "--effort thorough" in note
    assert "--measures default,max_positive_trace" in note
    cost = found.gradients["max_positive_trace"]
    assert cost > 1000 and f"about {round(cost, -2):,.0f} gradients" in note
    assert not planned(problem, "thorough").left_out
    assert planned(problem, "thorough").selection.options["max_quadratic_form"].maximum == "certified"


@pytest.mark.parametrize(("width", "kept"), [(256, True), (1500, False)])
def test_norms_and_spectra_of_the_weights_count(width, kept):
    """Those of matrices of 1,500 rows take thousands of gradients of 8 samples, and more than a second."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
    init = {name: 0.9 * p.detach() for name, p in net.named_parameters()}
    problem = genbound.Problem(net, init, (torch.randn(8, width), torch.arange(8) % 3), num_samples=8)
    found = planned(problem)
    for name in ("matrix_norms", "spectral_norm"):
        assert (name in found.selection.options) == kept
        assert found.gradients[name] > 10
        if not kept:
            assert "gradients over the measured samples" in found.left_out[name]


def test_multiplications_are_counted_as_torch_counts_them():
    problem = deep(width=16, depth=3, classes=3)
    assert of_a_pass(problem) == 3 * 16 * 16 + 16 * 3 and of_convolutions(problem) == 0
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    init = {name: 0.9 * p.detach() for name, p in net.named_parameters()}
    images = genbound.Problem(net, init, (torch.randn(8, 3, 6, 6), torch.arange(8) % 5))
    assert of_convolutions(images) == 16 * 6 * 27 and of_a_pass(images) == of_convolutions(images) + 96 * 5
    assert (
        of_eigenvalues((16, 4, 2))
        == of_eigenvalues((8, 16))
        == pytest.approx(1.25 * (64 * 16 + 2 / 3 * 512 + 2 / 3 * 500 * 64))
    )


def test_what_is_asked_for_is_measured_whatever_it_takes():
    problem = deep()
    for measures, options in (
        (["default", "max_positive_trace"], {}), (["default", "trace_distance"], {}), (["max_positive_tr*"], {}),
        (None, {"max_positive_trace": {"num_probes": 4}}),
    ):  # fmt: skip
        found = planned(problem, measures=measures, options=options)
        assert "max_positive_trace" in found.selection.options and "max_positive_trace" not in found.left_out
        assert found.selection.options["hessian_trace"] == QUANTITIES["hessian_trace"].options()


def test_options_that_are_given_are_not_changed():
    found = planned(deep(), options={"max_quadratic_form": {"maximum": "certified"}})
    assert found.selection.options["max_quadratic_form"].maximum == "certified"


def test_small_problems_are_measured_whole():
    problem = CASES["mlp_gelu"].problem()
    found = planned(problem)
    assert not found.left_out and not found.remarks
    assert found.selection.options == select(None, {}).options


def test_quick_takes_half_an_epoch():
    problem = deep(num=8, total=400)
    found = planned(problem, "quick")
    assert sum(costs(problem, found).values()) <= 0.5 * problem.num_data
    assert {"losses", "displacement_norm", "relative_flatness"} <= found.selection.options.keys()
    assert "max_positive_trace" in found.left_out and "epochs" in found.left_out["max_positive_trace"]
    alone = planned(deep(), "quick")
    assert "losses" in alone.selection.options, "the range of the loss is made of them"


def test_the_table_says_what_was_left_out(tmp_path):
    problem = deep(num=3, total=3, depth=4, width=30)
    results = genbound.evaluate(problem, effort="quick", out=tmp_path)
    assert results.config["effort"] == "quick"
    assert "left out of --effort quick" in results.notes["hessian_trace"]
    assert "left out of --effort quick" in results.bounds["hessian_distance"]["note"]
    assert "hessian_trace: left out of --effort quick" in results.to_markdown()
    results.save(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["notes"]["hessian_trace"]
    assert genbound.load_results(tmp_path).notes == results.notes


def test_efforts_have_the_same_names_everywhere():
    (given,) = [o for d in PAIR_OPTIONS for o in _parameters(d) if o.name == "effort"]
    assert tuple(given.type.choices) == EFFORTS and given.default == "standard"
    with pytest.raises(GenboundError, match="did you mean thorough"):
        genbound.evaluate(CASES["mlp_gelu"].problem(), ["losses"], effort="thorow")


def _parameters(decorate):
    holder = SimpleNamespace()
    decorate(holder)
    return getattr(holder, "__click_params__", [])


def test_certificates_of_small_networks_are_measured_whole_and_of_large_ones_on_request():
    """Trials are passes over all samples: of few measured ones they would be most of the whole."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    init = {name: 0.9 * p.detach() for name, p in net.named_parameters()}
    small = genbound.Problem(net, init, (torch.randn(1400, 64), torch.arange(1400) % 10), num_samples=256)
    assert planned(small).selection.options["gibbs_error"] == QUANTITIES["gibbs_error"].options()
    large = deep(num=64, total=500)
    assert "gradients over all samples" in planned(large).left_out["gibbs_error"]
    asked = planned(large, measures=["default", "gibbs_error"])
    assert asked.selection.options["gibbs_error"] == QUANTITIES["gibbs_error"].options()
